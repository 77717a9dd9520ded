"""When one rank of a job goes wrong, the job ends at once, and what is read last on the screen is that rank's word."""

import os
import re
from pathlib import Path

import pytest
from harness.run_record import RunRecord
from harness.torchrun import REPOSITORY, CompletedRun, start_torchrun, torchrun

PROMPTLY_S = 30.0  # with all of the launch; a collective's own timeout is 10 minutes


def root_cause(done: CompletedRun) -> str:
    """torchrun's closing words."""
    head, _, last = done.stderr.rpartition("Root Cause (first observed failure):")
    assert head, done.stderr
    return last


@pytest.mark.parametrize(("rank", "strategy"), [(1, "fsdp"), (0, "ddp")])
def test_the_rank_that_raised_has_the_last_word(rank: int, strategy: str, tmp_path: Path) -> None:
    harness = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    words = ("model=tiny", f"strategy={strategy}", "train.log_every=1", "checkpoint=off", f"run.dir={tmp_path / 'run'}")
    done = torchrun(2, str(rank), *words, module="harness.failing_rank", env={"PYTHONPATH": harness})
    assert done.returncode != 0
    assert done.seconds < PROMPTLY_S
    assert f"RuntimeError: boom on rank {rank}" in root_cause(done)
    assert re.search(rf"rank +: {rank} ", root_cause(done))
    assert done.stderr.count("switchyard: rank ") == 1  # the other one kept quiet
    assert RunRecord(tmp_path / "run").last_step == 4


def test_a_rank_that_was_killed_is_named(tmp_path: Path) -> None:
    record = RunRecord(tmp_path / "run")
    words = ("model=tiny", "strategy=ddp", "train.steps=1000", "train.log_every=1", "logging=off")
    with start_torchrun(2, *words, f"run.dir={record.folder}") as launch:
        launch.wait_for(lambda _: record.last_step >= 5)
        launch.kill_rank(1)
        done = launch.wait(PROMPTLY_S)
    assert done.returncode != 0
    assert "Signal 9 (SIGKILL)" in root_cause(done)
    assert re.search(r"rank +: 1 ", root_cause(done))
    assert "switchyard: rank " not in done.stderr
