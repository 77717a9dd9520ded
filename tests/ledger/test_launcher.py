"""What launchers stamp, in jobs of real processes."""

import os
from pathlib import Path

import pytest
from harness.observed import observed
from harness.observed_job import JOB
from harness.torchrun import REPOSITORY, start_torchrun

from train.ledger.events import now_ns
from train.ledger.fold import fold
from train.ledger.launcher import stamp
from train.ledger.read import read_ledger

HARNESS = {"PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "tests")))}


@pytest.mark.soak
def test_a_start_that_died_before_it_had_a_ledger_is_in_the_books(tmp_path: Path) -> None:
    words = ("harness.failing_start", "6", *JOB, "train.steps=2", f"run.dir={tmp_path / 'run'}")
    launched_ns, env = now_ns(), stamp() | HARNESS
    started = start_torchrun(1, *words[1:], module=words[0], env=env, agent_words=["--max-restarts=1"])
    with started, observed(started) as lives:
        assert started.wait(120).returncode == 0
    dead, alive = lives
    assert dead.gone
    assert alive.gone
    books = fold(read_ledger(tmp_path / "run"))
    assert len(books.attempts) == 1
    assert abs(books.wall_ns - (alive.gone - launched_ns)) < 0.3e9
    assert books.buckets["init_process"] > alive.begin - launched_ns > 6e9
