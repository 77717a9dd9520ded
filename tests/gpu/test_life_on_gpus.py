"""Ends of jobs whose ranks wait inside NCCL: told to end, and with a rank that stands still. On two GPUs."""

import json
from pathlib import Path

import psutil
import pytest
import torch
from harness.run_record import RunRecord
from harness.torchrun import TorchrunLaunch, start_torchrun

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


def running(record: RunRecord, *words: str) -> TorchrunLaunch:
    common = ("model=tiny", "strategy=fsdp", "train.steps=100000", "train.log_every=5", "logging=off")
    launch = start_torchrun(2, *common, f"run.dir={record.folder}", *words)
    launch.wait_for(lambda _: record.last_step >= 10, timeout=120)
    return launch


def test_a_stop_is_agreed_on_behind_the_device(tmp_path: Path) -> None:
    record = RunRecord(tmp_path / "run")
    with running(record) as launch:
        psutil.Process(launch.worker_pids()[1]).terminate()
        done = launch.wait(60)
    assert f"told to end (SIGTERM): ended after step {record.last_step}, saved" in done.stderr
    assert record.saved_steps == [record.last_step]


def test_a_rank_that_stands_still_ends_the_job(tmp_path: Path) -> None:
    record = RunRecord(tmp_path / "run")
    with running(record, "recovery.step_limit_s=3") as launch:
        psutil.Process(launch.worker_pids()[1]).suspend()
        done = launch.wait(60)  # NCCL's own patience is ten minutes
    assert "switchyard: rank 1 has been in " in done.stderr
    ledger = record.folder / "ledger" / "attempt-0001"
    stamps = [json.loads(line)["ev"] for line in (ledger / "watch-00001.jsonl").read_text().splitlines()]
    assert stamps == ["hang", "gone"]
    assert "train/loop.py" in (ledger / "stacks-00000.txt").read_text()
