"""When one rank of a job goes wrong, the job ends at once, and what is read last on the screen is that rank's word."""

import os
import re
import time
from pathlib import Path

import pytest
from harness.run_record import RunRecord
from harness.torchrun import REPOSITORY, CompletedRun, start_torchrun, torchrun

PROMPTLY_S = 15.0  # from the last step on; a rank that leaves the word to another waits 20, a collective 10 minutes
COMMON = ("model=tiny", "train.device=cpu", "train.log_every=1")


def root_cause(done: CompletedRun) -> str:
    """torchrun's closing words."""
    head, _, last = done.stderr.rpartition("Root Cause (first observed failure):")
    assert head, done.stderr
    assert last.rstrip().endswith("=" * 20), last  # its frame, and nothing below it
    return last


def seconds_since_last_row(record: RunRecord) -> float:
    return time.time() - (record.folder / "metrics.jsonl").stat().st_mtime


@pytest.mark.parametrize(("rank", "strategy"), [(1, "fsdp"), pytest.param(0, "ddp", marks=pytest.mark.soak)])
def test_the_rank_that_raised_has_the_last_word(rank: int, strategy: str, tmp_path: Path) -> None:
    harness = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    record = RunRecord(tmp_path / "run")
    # With wandb, offline: its process neither holds up the end nor has the last word.
    words = (*COMMON, f"strategy={strategy}", f"run.dir={record.folder}")
    done = torchrun(2, str(rank), *words, module="harness.failing_rank", env={"PYTHONPATH": harness})
    assert seconds_since_last_row(record) < PROMPTLY_S
    assert done.returncode != 0
    assert f"RuntimeError: boom on rank {rank}" in root_cause(done)
    assert re.search(rf"rank +: {rank} ", root_cause(done))
    assert done.stderr.count("switchyard: rank ") == 1  # the other one kept quiet
    assert record.last_step == 4


def test_a_rank_that_was_killed_is_named(tmp_path: Path) -> None:
    record = RunRecord(tmp_path / "run")
    words = (*COMMON, "strategy=ddp", "train.steps=1000", "logging=off", f"run.dir={record.folder}")
    with start_torchrun(2, *words) as launch:
        launch.wait_for(lambda _: record.last_step >= 5)
        launch.kill_rank(1)
        done = launch.wait(60)
    assert seconds_since_last_row(record) < PROMPTLY_S
    assert done.returncode != 0
    assert "Signal 9 (SIGKILL)" in root_cause(done)
    assert re.search(r"rank +: 1 ", root_cause(done))
    assert "switchyard: rank " not in done.stderr
