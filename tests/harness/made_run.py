"""Run folders made by hand: a real configuration, rows of metrics and a ledger, without a job."""

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from conf.compose import compose
from harness.ledger_builder import Rank
from train.metrics.breakdown import STEPS, row_key
from train.run_folder import write_config

ENVIRONMENT = {
    "packages": {"torch": "2.13.0"},
    "resumed_after_step": 0,
    "world_size": 2,
    "device": "cpu: made",
    "peak_tflops": 0.1,
    "peak_source": "made",
    "corpus_sha256": "0",
}
BUCKETS = {"compute_fwd": 0.02, "compute_bwd": 0.05, "exposed_comm/fsdp": 0.02, "other": 0.01}


def made_run(
    folder: Path,
    words: Sequence[str],
    losses: Sequence[float],
    step_s: float = 0.1,
    buckets: dict[str, float] | None = None,
    memory_gib: float = 1.0,
    ledger: bool = True,
) -> Path:
    """A run of `words` that has logged `losses`, a row a step; `buckets` are seconds of each, {} for none."""
    composed = compose(words)
    write_config(folder, yaml.safe_load(composed.yaml), ENVIRONMENT)
    divided = BUCKETS if buckets is None else buckets
    timed = {row_key(bucket): seconds for bucket, seconds in divided.items()}
    if divided:
        timed |= {row_key("wall"): sum(divided.values()), STEPS: 1}
    with (folder / "metrics.jsonl").open("w") as file:
        for step, loss in enumerate(losses, start=1):
            row = {"train/step": step, "train/tokens": step * 100, "train/loss": loss, "perf/step_time_s": step_s}
            row |= {"perf/tokens_per_sec": 100 / step_s, "perf/mfu": 0.25, "mem/peak_gib": memory_gib}
            row |= {"moe/load_max_over_mean": 1.0 + step / 10} | timed
            file.write(json.dumps(row) + "\n")
    if ledger:
        one = Rank(folder, 1).start(0, 1, 2).event("resumed", step=0, passed_over=[]).tile(init_model=2)
        one.steps(1, *[1.0] * len(losses)).exit("finished")
    return folder
