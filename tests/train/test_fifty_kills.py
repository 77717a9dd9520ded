"""Fifty SIGKILLs at random moments of one job: it ends, nothing is lost, and its books are kept."""

import os
import random
import time
from pathlib import Path

import psutil
import pytest
import torch
from harness.run_record import RunRecord
from harness.torchrun import TorchrunLaunch, start_torchrun, torchrun

from train.ledger.fold import fold
from train.ledger.read import read_ledger

KILLS = 50
JOB = (
    "model=tiny",
    "train.device=cpu",
    "strategy=zero1",
    "train.steps=1500",
    "train.global_batch_size=4",
    "train.log_every=5",
    "train.eval_sequences=0",
    "checkpoint.every=5",
    "logging=off",
)
LONGEST_S = 9.0
"""From a start of both ranks to the kill. It takes some five to the first step: starts, loads, steps and saves are all
hit."""


def launch(run: Path) -> TorchrunLaunch:
    return start_torchrun(2, *JOB, f"run.dir={run}", agent_words=["--max-restarts=1000"])


def wait_for_both(launched: TorchrunLaunch, other_than: set[int]) -> dict[int, int] | None:
    """Pids by rank of two new workers; None if the job ended."""
    while launched.running:
        pids = launched.worker_pids()
        if len(pids) == 2 and not other_than & set(pids.values()):
            return pids
        time.sleep(0.05)
    return None


@pytest.mark.soak
def test_nothing_is_lost(tmp_path: Path) -> None:
    undisturbed = RunRecord(tmp_path / "undisturbed")
    done = torchrun(2, *JOB, f"run.dir={undisturbed.folder}", timeout=600)
    assert done.returncode == 0, done.stderr
    chance, run = random.Random(5), RunRecord(tmp_path / "run")
    launched, before = launch(run.folder), set[int]()
    for kill in range(KILLS):
        pids = wait_for_both(launched, before)
        assert pids, f"it ended after {kill} kills: {launched.stderr[-3000:]}"
        before = set(pids.values())
        time.sleep(chance.uniform(0, LONGEST_S))
        victim = chance.choice(("rank 0", "rank 1", "rank 0", "rank 1", "torchrun"))
        if victim == "torchrun":  # and its ranks with it
            os.kill(launched.agent_pid, 9)
            _, left = psutil.wait_procs([psutil.Process(pid) for pid in before if psutil.pid_exists(pid)], timeout=10)
            assert not left
            launched.kill_all()
            launched = launch(run.folder)
        else:
            os.kill(pids[int(victim[-1])], 9)
    done = launched.wait(600)
    assert done.returncode == 0, done.stderr[-3000:]

    expected, got = undisturbed.tensors(1500), run.tensors(1500)
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name
    books = fold(read_ledger(run.folder))
    assert sum(books.buckets.values()) == books.total
    assert books.attempts[-1].cause == "finished"
    assert books.durable_step == books.standing_steps == 1500
    print(books.as_json())
