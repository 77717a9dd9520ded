"""A watcher beside a process: no torch, no ranks; what it writes, whom it kills, and that it is gone soon after."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness.torchrun import REPOSITORY

from train.faults.watch.watched import Watched

RANK = """
import ctypes, os, resource, signal, sys, time
from pathlib import Path
from train.faults.beat import Beat
from train.faults.recovery_config import RecoveryConfig
from train.faults.watch import watched
from train.faults.watch.start import start_watcher

folder, rank, limit_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
beat = Beat(folder, rank)
beat.at("compute_bwd", step=12)
if "full disk" in sys.argv:  # a file of the watcher's may have no byte
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
start_watcher(folder, rank, range(2), RecoveryConfig(first_step_limit_s=limit_s))
print("watched", flush=True)

def hang_in_c():
    while True:
        ctypes.CDLL(None).sleep(60)

if "busy" in sys.argv:
    while True:
        time.sleep(0.1)
        beat.at("compute_bwd")
hang_in_c()
"""

Rank = Callable[..., subprocess.Popen]


@pytest.fixture
def rank(tmp_path: Path) -> Iterator[Rank]:
    """Starts a process that is watched as a rank; all are gone in the end, and so are their watchers."""
    started: list[subprocess.Popen] = []

    def start(number: int, limit_s: float, *words: str) -> subprocess.Popen:
        command = [sys.executable, "-c", RANK, str(tmp_path), str(number), str(limit_s), *words]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "watched\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def events(folder: Path, rank: int) -> list[dict[str, Any]]:
    path = folder / f"watch-{rank:05d}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def ended(process: subprocess.Popen, timeout: float = 30.0) -> str:
    """What it wrote to standard error, which its watcher has too: read to the end, that one is gone."""
    _, err = process.communicate(timeout=timeout)
    return err


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_end_of_a_rank_is_stamped_with_its_last_beat(number: int, rank: Rank, tmp_path: Path) -> None:
    process = rank(3, 0.0)
    (watcher,) = psutil.Process(process.pid).children()
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    process.send_signal(number)
    assert ended(process) == ""
    watcher.wait(timeout=5)
    (gone,) = events(tmp_path, 3)
    assert (gone["ev"], gone["beat"]["phase"], gone["beat"]["step"]) == ("gone", "compute_bwd", 12)
    assert gone["beat"]["t"] < before < gone["t"]
    assert not (tmp_path / "stacks-00003.txt").exists()  # nothing is in it


def test_signals_to_the_rank_s_group_and_to_the_watcher_leave_it_be(rank: Rank, tmp_path: Path) -> None:
    process = rank(0, 0.0)
    (watcher,) = psutil.Process(process.pid).children()
    assert os.getsid(watcher.pid) != os.getsid(process.pid)
    time.sleep(0.5)  # it is on its feet
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # a cluster signals all processes of a job
        watcher.send_signal(number)
    process.kill()
    ended(process)
    assert [event["ev"] for event in events(tmp_path, 0)] == ["gone"]


def test_a_rank_that_hangs_leaves_its_stacks_and_is_killed(rank: Rank, tmp_path: Path) -> None:
    process = rank(1, 2.0)
    said = ended(process)
    assert process.returncode == -signal.SIGKILL
    stacks = tmp_path / "stacks-00001.txt"
    assert said == (
        f"switchyard: rank 1 has been in compute_bwd of step 12 for 2 s (limit 2 s): stacks in {stacks}; killing it\n"
    )
    assert "in hang_in_c" in stacks.read_text()
    hang, gone = events(tmp_path, 1)
    assert (hang["ev"], hang["phase"], hang["limit_s"]) == ("hang", "compute_bwd", 2.0)
    assert hang["beat"] == gone["beat"]
    assert gone["ev"] == "gone"
    assert hang["t"] - hang["beat"]["t"] > 2e9


@pytest.mark.soak
def test_a_full_disk_keeps_no_rank_alive(rank: Rank, tmp_path: Path) -> None:
    """Nothing of a hang can be written but the line."""
    process = rank(1, 2.0, "full disk")
    assert "rank 1 has been in compute_bwd" in ended(process)
    assert process.returncode == -signal.SIGKILL
    assert events(tmp_path, 1) == []


@pytest.mark.soak
def test_one_that_goes_on_is_left_alone(rank: Rank, tmp_path: Path) -> None:
    process = rank(0, 2.0, "busy")
    time.sleep(4.0)
    assert process.poll() is None
    process.kill()
    ended(process)
    assert [event["ev"] for event in events(tmp_path, 0)] == ["gone"]


def test_only_the_one_to_blame_is_killed_and_both_leave_stacks(rank: Rank, tmp_path: Path) -> None:
    """Rank 1 began to wait first, but rank 0 is stopped."""
    waits = rank(1, 2.0)
    hangs = rank(0, 2.0)
    hangs.send_signal(signal.SIGSTOP)
    assert "rank 0 has been in compute_bwd of step 12 for 2 s (limit 2 s), stopped by a signal" in ended(hangs)
    assert (tmp_path / "stacks-00000.txt").read_text() == "no stacks: the process is stopped by a signal (state T)\n"
    assert waits.poll() is None
    assert "in hang_in_c" in (tmp_path / "stacks-00001.txt").read_text()
    assert events(tmp_path, 1) == []


def test_without_a_pidfd_it_is_its_parent_or_it_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    parent = Watched(os.getppid())
    assert not parent.ended(0.1)
    parent.signal(signal.SIGCONT)
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert parent.ended(None)
    assert Watched(os.getpid()).ended(0.0)  # a number that is another's
