"""SIGTERM to a process whose main thread is in C: when it ends, and with which last words."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.torchrun import REPOSITORY

PROGRAM = """
import ctypes, os, sys, time
from pathlib import Path
from train.faults.sigterm import Sigterm

folder, grace_s, seconds = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
say = lambda *words: os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # from two threads
with Sigterm(folder, grace_s, lambda: say("told"), say):
    say("ready")
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        ctypes.CDLL(None).sleep(60)  # gives up the GIL and runs no handler, as a collective does; a signal ends it
say("after")
time.sleep(60)
"""

Process = Callable[[float, float], subprocess.Popen]


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    """Starts one with so much grace, which listens for so long."""
    started: list[subprocess.Popen] = []

    def start(grace_s: float, seconds: float) -> subprocess.Popen:
        command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(grace_s), str(seconds)]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


def stamp(folder: Path, rank: int, event: str, phase: str) -> None:
    line = json.dumps({"ev": event, "t": 2, "beat": {"phase": phase, "step": 3, "t": 1}})
    (folder / f"watch-{rank:05d}.jsonl").write_text(line + "\n")


def said(child: subprocess.Popen) -> tuple[int, list[str]]:
    out, err = child.communicate(timeout=30)
    assert err == ""
    return child.returncode, out.splitlines()


@pytest.mark.parametrize("event", ["gone", "hang"])
def test_where_a_rank_is_lost_it_ends_at_once(event: str, process: Process, tmp_path: Path) -> None:
    child = process(1000.0, 1000.0)
    stamp(tmp_path, 1, event, "compute_fwd")
    child.send_signal(signal.SIGTERM)
    assert said(child) == (143, ["told", "lost_peers 143"])


def test_the_loss_may_be_stamped_after_the_signal(process: Process, tmp_path: Path) -> None:
    child = process(1000.0, 1000.0)
    child.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    stamp(tmp_path, 1, "gone", "compute_fwd")
    assert said(child) == (143, ["told", "lost_peers 143"])


def test_ranks_that_ended_in_order_are_no_loss_and_grace_ends(process: Process, tmp_path: Path) -> None:
    child = process(1.0, 1000.0)
    stamp(tmp_path, 1, "gone", "shutdown")
    child.send_signal(signal.SIGTERM)
    assert said(child) == (143, ["told", "preempted 143"])


def test_a_second_signal_changes_nothing(process: Process) -> None:
    child = process(1.5, 1000.0)
    for _ in range(3):
        child.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    assert said(child) == (143, ["told", "preempted 143"])


def test_after_it_the_signal_kills_again(process: Process) -> None:
    child = process(1000.0, 0.0)
    assert child.stdout is not None
    assert child.stdout.readline() == "after\n"
    child.send_signal(signal.SIGTERM)
    assert said(child) == (-signal.SIGTERM, [])


def test_one_that_was_told_and_leaves_in_disorder_has_its_grace_alone(process: Process) -> None:
    """A rank whose collective fails after the signal, and which then waits to be ended."""
    child = process(1.0, 0.1)
    time.sleep(0.2)
    child.send_signal(signal.SIGTERM)
    code, lines = said(child)
    assert (code, sorted(lines[:2]), lines[2:]) == (143, ["after", "told"], ["preempted 143"])
