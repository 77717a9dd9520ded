#!/usr/bin/env bash
# moe_5b on 1 and 2 GPUs of 139 GiB: tokens/s, MFU and memory by strategy, fresh random tokens, 16k tokens a GPU and step;
# then the same model on real text. Each run's table is printed and its metrics.jsonl kept in runs/.
# Usage: benchmarks/moe_5b.sh [steps]
set -uo pipefail
steps="${1:-40}"
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True

run() { # run NAME RANKS words…
    local name="$1" ranks="$2"; shift 2
    echo "== $name: $ranks rank(s): $*"
    python3 -m torch.distributed.run --standalone --nproc-per-node "$ranks" -m train \
        model=moe_5b precision=bf16 optim=adamw_large checkpoint=off logging=off train.log_every=5 \
        "run.name=$name" "$@"
}

speed=(data=synthetic train.eval_sequences=0 "train.steps=$steps" train.micro_batch_size=4)
run speed-single-1 1 strategy=single "${speed[@]}" train.global_batch_size=4
run speed-fsdp-1 1 strategy=fsdp "${speed[@]}" train.global_batch_size=4
if [ "$(nvidia-smi -L | wc -l)" -ge 2 ]; then
    run speed-ddp-2 2 strategy=ddp "${speed[@]}" train.global_batch_size=8
    run speed-fsdp-2 2 strategy=fsdp "${speed[@]}" train.global_batch_size=8
    run speed-fsdp-2-max 2 strategy=fsdp overlap=max "${speed[@]}" train.global_batch_size=8
    run learn-fsdp-2 2 strategy=fsdp data=stdlib train.steps=100 train.global_batch_size=8 train.eval_sequences=16 \
        train.log_every=10
fi
