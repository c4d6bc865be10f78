#!/usr/bin/env bash
# ResNet-20 on CIFAR-10 under every policy, same short recipe, same quantizers, several seeds; then one report of all.
#
#   benchmarks/cifar10.sh DATA OUTPUT [JOBS]     DATA: folder of CIFAR-10 as Parquet; JOBS: runs at a time, one thread each
#
# At the cost of cyclic 3-8 (0.633 of static 8): cyclic, ramp, random, learned. At the cost of static 4 (0.417): static 4,
# learned. A run that is finished already is not repeated; one that was killed goes on.
set -euo pipefail
data="$1"; output="$2"; jobs="${3:-1}"
seeds="${SEEDS:-0 1}"
recipe="${RECIPE:-limit=10000 epochs=6 lr_schedule=cosine precision=bf16 eval_every=6 checkpoint_every=5min}"
quantizer="${QUANTIZER:-minmax}"
export OMP_NUM_THREADS=1

for seed in $seeds; do
  for run in \
    "learned-0.633 space=ldp target_cost=0.633" \
    "cyclic-3-8 space=cyclic policy.cycles=8" \
    "learned-0.417 space=ldp target_cost=0.417" \
    "static-4 space=static policy.bits=4" \
    "ramp-3-8 space=ramp" \
    "random-0.633 space=random target_cost=0.633" \
    "static-8 space=static"; do
    set -- $run
    name="$1"; shift
    folder="$output/$name-seed$seed"
    [ -f "$folder/result.json" ] && continue
    echo "task=cifar10 data=$data model=timm:cifar_resnet20 $recipe weight_quantizer=$quantizer input_quantizer=$quantizer $* seed=$seed output=$folder"
  done
done | xargs -P "$jobs" -I{} sh -c 'exec nice -n ${NICE:-0} python -m ldp_search.run {} >>"'"$output"'.log" 2>&1 || echo "failed: {}"'

python -m ldp_search.report "$output"/*-seed* output="$output/report"
