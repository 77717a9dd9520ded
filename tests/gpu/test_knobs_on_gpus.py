"""Overlap knobs that re-order streams: same losses with and without them, on NCCL."""

import json
from pathlib import Path

import pytest
import torch
from harness.torchrun import torchrun

pytestmark = pytest.mark.gpu
TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
JOB = ("model=tiny", "precision=fp64", "train.steps=20", "train.log_every=1", "train.eval_sequences=4", "logging=off")
JOB += ("checkpoint=off",)
BUCKETS = "overlap.bucket_mib=0.05"
EARLY = ("optim.clip_norm=null", "recovery.non_finite=fail")


def losses(nproc: int, folder: Path, *words: str) -> list[float]:
    done = torchrun(nproc, *JOB, *words, f"run.dir={folder}", timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]


@TWO
@pytest.mark.parametrize(
    "words",
    [
        f"strategy=ddp train.micro_batch_size=2 {BUCKETS}",
        f"strategy=zero1 train.micro_batch_size=2 {BUCKETS}",
        f"strategy=zero1 precision=bf16 {BUCKETS}",
        "strategy=fsdp train.micro_batch_size=2",
        "strategy=fsdp precision=bf16",
        f"strategy=ep {BUCKETS}",
    ],
)
def test_updates_on_a_stream_of_their_own(words: str, tmp_path: Path) -> None:
    """An update that came before its gradient, or a forward before an update, would show within 20 steps."""
    after = losses(2, tmp_path / "after", *words.split(), *EARLY)
    behind = losses(2, tmp_path / "behind", *words.split(), *EARLY, "overlap.optimizer=true")
    assert behind == pytest.approx(after, abs=1e-12 if "bf16" not in words else 1e-3)


@TWO
@pytest.mark.parametrize("words", ["strategy=tp", "strategy=tp strategy.recompute=selective", "strategy=tp_ep"])
def test_chunks_of_sequences(words: str, tmp_path: Path) -> None:
    whole = losses(2, tmp_path / "whole", *words.split())
    chunks = losses(2, tmp_path / "chunks", *words.split(), "overlap.async_tp=4")
    assert chunks == pytest.approx(whole, abs=1e-9)


@TWO
@pytest.mark.parametrize("schedule", ["one_f_one_b", "dualpipev", "dualpipe"])
def test_messages_waited_for_at_once(schedule: str, tmp_path: Path) -> None:
    words = ("strategy=pp", f"strategy.schedule={schedule}", "model.n_layers=6")
    hidden = losses(2, tmp_path / "hidden", *words)
    exposed = losses(2, tmp_path / "exposed", *words, "overlap.pipeline_p2p=false")
    assert exposed == pytest.approx(hidden, abs=1e-12)
