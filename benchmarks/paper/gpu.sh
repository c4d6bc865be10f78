#!/usr/bin/env bash
# The proxy on one GPU within a given time: every row of ResNet-20, three seeds, the most telling ones first.
#
#   benchmarks/paper/gpu.sh DATA OUTPUT [SECONDS=480] [WORKERS=12]      DATA: folder with cifar10-16.npz, from benchmarks.paper.prepare
#
# After SECONDS no cell begins, running ones save and stop; the same command again goes on there. Every line of a done cell ends with
# how its steps ran: "graph", or "eager: " and why a capture failed. Processes take turns on the GPU, so that one computes while
# the others prepare their next step. Needs torch, numpy, pyarrow.
set -euo pipefail
data="$1"; output="$2"; seconds="${3:-480}"; workers="${4:-12}"
export OMP_NUM_THREADS=1 CUDA_MODULE_LOADING=LAZY
run() { python -m benchmarks.paper size=proxy device=cuda data="$data" "$@"; }

# Half a minute: do captures work, and how long is a step of a process that is alone?
run output="$output/check" steps=300 seeds=0 cells=resnet20/cpt,resnet20/learned_0.3165 deadline=90
run output="$output" workers="$workers" deadline="$seconds" checkpoint=60
python -m benchmarks.paper report="$output"
