#!/usr/bin/env bash
# Layouts of one model on 2 GPUs: tokens/s, MFU and memory, fresh random tokens, 16k tokens a GPU and step. A layout whose
# summary.json is there is not run again, so a table that was cut off goes on. The table comes last.
# Usage: benchmarks/layouts.sh [steps] [key=value …]
set -uo pipefail
steps="${1:-20}"; shift || true
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True

run() { # run NAME words…
    local name="$1"; shift
    [ -e "runs/layout-$name/summary.json" ] && return
    rm -rf "runs/layout-$name"
    echo "$*" > "runs/layout-$name.words"
    timeout 150 python3 -m torch.distributed.run --standalone --nproc-per-node 2 -m train model=moe_5b precision=bf16 \
        optim=adamw_large checkpoint=off logging=off train.log_every=5 data=synthetic train.eval_sequences=0 \
        "train.steps=$steps" train.global_batch_size=8 "run.name=layout-$name" "$@" > "runs/layout-$name.log" 2>&1 \
        || { echo "layout-$name failed:"; tail -n 4 "runs/layout-$name.log"; }
}

mkdir -p runs
run fsdp strategy=fsdp "$@"
run fsdp_ep strategy=fsdp_ep "$@"
run zero1 strategy=zero1 overlap.bucket_mib=200 "$@"
run ep strategy=ep "$@"
run ep_all_gather strategy=ep strategy.dispatcher=all_gather "$@"
run tp strategy=tp "$@"
run tp_ep strategy=tp_ep "$@"
for schedule in one_f_one_b interleaved_1f1b zbv dualpipev; do
    run "pp_$schedule" strategy=pp "strategy.schedule=$schedule" train.micro_batch_size=1 "$@"
done
# Other libraries' engines beside ours, all on a model cut to 5 layers: DeepSpeed keeps more beside its weights (ZeRO-1 in
# bf16 all gradients in float32), and so they fit into 80 GB. Buckets that are read are as large as DeepSpeed means them.
for strategy in fsdp accelerate_fsdp deepspeed_zero1; do
    run "cut_$strategy" "strategy=$strategy" model.n_layers=5 "$@"
done
for strategy in zero1 deepspeed_zero2 deepspeed_zero3; do
    run "cut_$strategy" "strategy=$strategy" model.n_layers=5 overlap.bucket_mib=200 "$@"
done
python3 - runs/layout-*/summary.json <<'PY'
import json, sys
from pathlib import Path

print("| layout | tokens/s | step, ms | MFU | memory a GPU, GiB | words |")
print("|---|---|---|---|---|---|")
for path in sys.argv[1:]:
    s = json.loads(Path(path).read_text())
    name = Path(path).parent.name.removeprefix("layout-")
    step = f"{s['step_time_s'] * 1e3:.1f} ± {s['step_time_iqr_s'] * 1e3:.1f}"
    kept = Path(f"runs/layout-{name}.words")
    words = kept.read_text().strip() if kept.exists() else ""
    memory = f"{s['peak_memory_gib']:.0f}"
    print(f"| {name} | {s['tokens_per_sec'] / 1e3:.1f}k | {step} | {s['mfu']:.1%} | {memory} | {words} |")
PY
