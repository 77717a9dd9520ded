#!/usr/bin/env bash
# moe_5b in bf16 on one and on two GPUs of 139 GiB, 16k and 131k tokens a GPU and step, and transformers beside it:
# tokens/s, MFU and memory; exits 1 where a step does more than POINTS_limits.yaml allows. FOLDER/*/bench.json has all of
# it; the same words again go on where they were cut off.
# Of the long steps a quarter are done, and half the rounds.
# Usage: benchmarks/speed.sh FOLDER [steps=40] [rounds=4] [name…, of one-16k one-131k two-16k two-131k; without: all]
set -euo pipefail
usage="usage: benchmarks/speed.sh FOLDER [steps, 12 or more] [rounds] [one-16k one-131k two-16k two-131k]"
to="${1:?$usage}" steps="${2:-40}" rounds="${3:-4}" here="$(dirname "$0")" names="${*:4}"
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
[ "$steps" -ge 12 ] || { echo "$usage" >&2; exit 2; }
for name in $names; do
    [[ " one-16k one-131k two-16k two-131k " == *" $name "* ]] || { echo "$name: $usage" >&2; exit 2; }
done
gpus="$(nvidia-smi -L | wc -l)" failed=0

bench() { # bench NAME RANKS POINTS sequences-a-step-and-rank shorter
    [ -z "$names" ] || [[ " $names " == *" $1 "* ]] || return 0
    [ "$gpus" -ge "$2" ] || { echo "$1: left out, there are $gpus GPUs" >&2; return 0; }
    python3 -m launch.cli bench "to=$to/$1" "nproc=$2" peer=transformers \
        "configs=$here/$3.yaml" "limits=$here/${3}_limits.yaml" \
        "rounds=$(((rounds + $5 - 1) / $5))" model=moe_5b precision=bf16 optim=adamw_large \
        "train.steps=$((steps / $5 / $5))" "train.log_every=$((5 / $5))" \
        "train.global_batch_size=$(($2 * $4))" "train.micro_batch_size=$((4 * $5))" || failed=1
}

bench one-16k 1 one_gpu 4 1
bench one-131k 1 one_gpu 32 2
bench two-16k 2 two_gpus 4 1
bench two-131k 2 two_gpus 32 2
exit $failed
