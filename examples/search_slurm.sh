#!/usr/bin/env bash
# A search on a Slurm cluster: an array of workers on one PostgreSQL database, one GPU each.
#
#   sbatch --array=1-16 examples/search_slurm.sh
#
# All of them give the same command, whose trials= is the total. One that is preempted loses nothing: Slurm starts it again
# (--requeue), and meanwhile another worker may have taken up its trial, from the checkpoint in the shared folder. More
# workers can be added at any time by another sbatch.
#SBATCH --job-name=ldp-search
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --output=search-%A-%a.log
set -euo pipefail

: "${DATABASE:=postgresql://ldp@database-host/ldp}"  # the password belongs into ~/.pgpass
: "${FOLDER:=/shared/$USER/ldp-search}"              # seen by all nodes: checkpoints, files for the dashboard

# Slurm's warning before the end goes to the worker, which then writes a checkpoint and hands its trial back.
python -m ldp_search.run task=cifar10 model=timm:cifar_resnet20 space=ldp trials=400 storage="$DATABASE" output="$FOLDER" &
worker=$!
trap 'kill -TERM "$worker" 2>/dev/null' TERM
wait "$worker" || wait "$worker"
