"""Saves that are written while training goes on: what they hold, when they count, and what happens when they fail."""

import errno
import io
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pytest
import torch
from harness.layout_run import DDP, FSDP, SINGLE, ZERO1
from harness.worker_pool import WorkerFailure, WorkerPool

from launch.verify.pieces import Piece, merge
from models.config import ConfigError
from parallel.comm import Communicator
from parallel.comm_kind import CommKind
from parallel.config import StrategyConfig
from parallel.engine import Engine
from parallel.world import is_peer_failure
from tests.train.test_checkpoint import FSDP_EP, arrays, build
from train.checkpoint.folder import committed
from train.checkpoint.hooks import Hooks
from train.checkpoint.manifest import Manifest, Progress
from train.checkpoint.store import CheckpointStore
from train.faults.config import Place
from train.faults.stop import Stopped
from train.ledger.ledger import Ledger

PATIENCE_S = 20


def rank() -> int:
    return torch.distributed.get_rank()


def opened(
    folder: Path, hooks: Hooks | None = None, strategy: StrategyConfig = FSDP, behind: bool = True
) -> tuple[Engine, CheckpointStore, Communicator]:
    engine, _, comm = build(strategy, seed=3)
    return engine, CheckpointStore(folder, comm, behind=behind, hooks=hooks), comm


def train_on(engine: Engine) -> None:
    """What a step does, to every element: other numbers in the same storage."""
    for shard in (engine.weights() | engine.moments()).values():
        shard.local.mul_(-3).add_(1)


def files(checkpoint: Path) -> list[str]:
    return sorted(path.name for path in checkpoint.iterdir())


class Gate:
    """Holds a writer up at one place until it is opened."""

    def __init__(self, place: Place) -> None:
        self._place, self._open, self.reached = place, threading.Event(), threading.Event()

    def reach(self, place: Place, step: int) -> None:
        if place is self._place:
            self.reached.set()
            assert self._open.wait(PATIENCE_S)

    def open(self) -> None:
        self._open.set()


def save_three(folder: Path, strategy: StrategyConfig) -> list[dict[str, Piece]]:
    """Saves back to back, with a step between them, and what the state was at each."""
    engine, store, _ = opened(folder, strategy=strategy)
    states = []
    for step in (1, 2, 3):
        states.append(arrays(engine))
        store.save(engine, Progress(step, step), keep=0)
        train_on(engine)
    store.finish()
    return states


def load(folder: Path, step: int, strategy: StrategyConfig) -> dict[str, Piece]:
    engine, store, _ = opened(folder, strategy=strategy)
    assert store.resume(engine).progress == Progress(step, step)
    return arrays(engine)


@pytest.mark.parametrize(("ranks", "strategy"), [(1, SINGLE), (2, ZERO1), (2, DDP), (4, FSDP_EP)])
def test_each_holds_the_state_of_its_step(
    ranks: int, strategy: StrategyConfig, pool: WorkerPool, tmp_path: Path
) -> None:
    by_rank = pool.run(ranks, save_three, tmp_path, strategy)
    for step in (3, 2, 1):
        expected = merge([states[step - 1] for states in by_rank])
        loaded = merge(pool.run(1, load, tmp_path, step, SINGLE))
        assert loaded.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(loaded[name], array, err_msg=f"{step} {name}")
        shutil.rmtree(tmp_path / f"step-{step:08d}")


def save_held_up(folder: Path) -> list[int]:
    """How many are committed: while the first is held up, after the second was begun, at the end."""
    gate = Gate(Place.rename)
    engine, store, comm = opened(folder, Hooks(reach=gate.reach))
    counts = []
    store.save(engine, Progress(1, 0), keep=0)
    if rank() == 0:
        assert gate.reached.wait(PATIENCE_S)
    counts.append(len(committed(folder)))
    store.poll()
    assert store.under_way
    assert store.take_metrics() == {}
    comm.barrier()  # the main thread's collectives go on meanwhile
    gate.open()
    store.save(engine, Progress(2, 0), keep=0)  # waits for the first
    counts.append(int((folder / "step-00000001").exists()))
    store.finish()
    assert not store.under_way
    counts.append(len(committed(folder)))
    return counts


@pytest.mark.parametrize("ranks", [1, 2])
def test_training_goes_on_and_the_next_save_waits(ranks: int, pool: WorkerPool, tmp_path: Path) -> None:
    assert pool.run(ranks, save_held_up, tmp_path) == [[0, 1, 2]] * ranks


def save_waiting(folder: Path) -> bool:
    engine, store, _ = opened(folder, behind=False)
    store.save(engine, Progress(1, 0), keep=0)
    return (folder / "step-00000001" / "manifest.json").exists()


def test_without_overlap_a_save_returns_when_it_is_committed(pool: WorkerPool, tmp_path: Path) -> None:
    assert pool.run(2, save_waiting, tmp_path) == [True, True]


def fail_at(folder: Path, place: Place, by: int, last: bool) -> tuple[str, str, list[dict], list[str]]:
    """Save 1 well, 2 on a disk that is full, and 3 well unless 2 is the `last`. What rank 0 said while training went
    on, what ended the job, the ledger's events, and what there is at the end."""

    def reach(reached: Place, step: int) -> None:
        if reached is place and step == 2 and rank() == by:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    ledger = Ledger(folder / f"rank-{rank()}.jsonl")
    engine, store, _ = opened(folder / "checkpoints", Hooks(ledger=ledger, reach=reach))
    ended = ""
    with redirect_stderr(io.StringIO()) as said:
        for step in (1, 2) if last else (1, 2, 3):
            store.save(engine, Progress(step, 0), keep=1)
        try:
            store.finish(asked=2)
        except ConfigError as error:
            ended = str(error)
    events = [json.loads(line) for line in (folder / f"rank-{rank()}.jsonl").read_text().splitlines()]
    return said.getvalue(), ended, events, files(folder / "checkpoints")


@pytest.mark.parametrize(("place", "by"), [(Place.write, 0), (Place.write, 1), (Place.rename, 0)])
@pytest.mark.parametrize("last", [False, True])
def test_a_full_disk(place: Place, by: int, last: bool, pool: WorkerPool, tmp_path: Path) -> None:
    first, second = pool.run(2, fail_at, tmp_path, place, by, last)
    line = (
        f"{tmp_path}/checkpoints/step-00000002 cannot be written (rank {by}: No space left on device): make room there"
    )
    said, ended, events, there = first
    told = [(event["ev"], event["step"]) for event in events]
    assert ("unsaved", 2) in told
    assert next(event["why"] for event in events if event["ev"] == "unsaved") == line
    if last:
        assert (said, ended, there) == ("", line, ["step-00000001"])  # keep=1, and it is the last that is whole
        assert second[:2] == ("", line)
    else:
        assert (said, ended) == (f"switchyard: {line}; training goes on, and the next save tries again\n", "")
        assert there == ["step-00000003"]
        assert second[:2] == ("", "")
        assert told == [("saving", 1), ("committed", 1), ("saving", 2), ("unsaved", 2), ("saving", 3), ("committed", 3)]
        assert [event["ev"] for event in second[2]] == ["saving"] * 3


def save_where_nothing_can_be(folder: Path) -> str:
    engine, store, _ = opened(folder / "file" / "checkpoints")
    store.save(engine, Progress(1, 0), keep=1)
    with pytest.raises(ConfigError) as refused:
        store.finish(asked=1)
    return str(refused.value)


def test_a_folder_that_cannot_be_is_one_line_on_every_rank(pool: WorkerPool, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = (
        f"{tmp_path}/file/checkpoints/step-00000001 cannot be written (rank 0: Not a directory): look after that file "
    )
    assert pool.run(2, save_where_nothing_can_be, tmp_path) == [line + "system"] * 2


def save_fenced(folder: Path) -> tuple[str, int]:
    engine, store, _ = opened(folder, Hooks(still_ours=lambda: False))
    store.save(engine, Progress(1, 0), keep=1)
    with pytest.raises(Stopped) as stopped:
        store.finish(asked=1)
    return stopped.value.cause, stopped.value.exit_code


def test_a_run_that_is_anothers_is_left_alone(pool: WorkerPool, tmp_path: Path) -> None:
    assert pool.run(2, save_fenced, tmp_path) == [("fenced", 77)] * 2
    assert files(tmp_path) == []


def break_off(folder: Path, how: Callable[[], None], marks: Path) -> None:
    """Rank 1's writer does `how`; rank 0 says what it sees of it."""

    def reach(place: Place, step: int) -> None:
        if place is Place.write and rank() == 1:
            how()

    engine, store, _ = opened(folder, Hooks(reach=reach))
    store.save(engine, Progress(1, 0), keep=1)
    try:
        store.finish()
    except Exception as error:
        (marks / f"rank-{rank()}").write_text(f"{type(error).__name__} {is_peer_failure(error)}")
        raise


def crash() -> None:
    raise ZeroDivisionError("on purpose")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_is_no_disks_fault_ends_the_rank(pool: WorkerPool, tmp_path: Path) -> None:
    with pytest.raises(WorkerFailure, match="on purpose"):
        pool.run(2, break_off, tmp_path / "checkpoints", crash, tmp_path)
    assert (tmp_path / "rank-1").read_text() == "ZeroDivisionError False"
    assert committed(tmp_path / "checkpoints") == []


def test_a_peers_death_ends_the_wait(pool: WorkerPool, tmp_path: Path) -> None:
    with pytest.raises(WorkerFailure):
        pool.run(2, break_off, tmp_path / "checkpoints", die, tmp_path)
    assert (tmp_path / "rank-0").read_text().endswith(" True")  # known as a peer's, not as an error here
    assert committed(tmp_path / "checkpoints") == []


def interrupt(folder: Path) -> bool:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gate = Gate(Place.write)
    engine, store, _ = opened(folder, Hooks(reach=gate.reach))
    store.save(engine, Progress(1, 0), keep=1)
    assert gate.reached.wait(PATIENCE_S)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        store.finish()
    held_up = not (folder / "step-00000001").exists()
    gate.open()
    return held_up


def test_an_interrupt_ends_the_wait(pool: WorkerPool, tmp_path: Path) -> None:
    assert pool.run(1, interrupt, tmp_path) == [True]


def save_twice(folder: Path) -> tuple[list[int], dict[str, float], list[tuple[Path, int]]]:
    told: list[tuple[Path, int]] = []
    engine, store, comm = opened(folder, Hooks(committed=lambda path, step: told.append((path, step))), DDP)
    gathers = []
    for step in (1, 2):
        store.save(engine, Progress(step, 0), keep=0)
        gathers.append(comm.calls[CommKind.control, "gather_object"])
    store.finish()
    return gathers, store.take_metrics(), told


def test_the_plan_is_made_once_and_replicas_share_the_writing(pool: WorkerPool, tmp_path: Path) -> None:
    outcomes = pool.run(2, save_twice, tmp_path)
    checkpoint = tmp_path / "step-00000002"
    manifest = Manifest.read(checkpoint)
    for gathers, metrics, told in outcomes:
        assert gathers == [1, 1]
        assert set(metrics) == {"ckpt/step", "ckpt/blocked_s", "ckpt/total_s", "ckpt/bytes", "ckpt/gb_per_sec"}
        assert metrics["ckpt/step"] == 2
        assert metrics["ckpt/bytes"] == manifest.bytes
        assert metrics["ckpt/gb_per_sec"] == metrics["ckpt/bytes"] / metrics["ckpt/total_s"] / 1e9
        assert told == [(tmp_path / f"step-{step:08d}", step) for step in (1, 2)]
    assert sorted([*manifest.files, "manifest.json"]) == files(checkpoint)
    assert {name: (checkpoint / name).stat().st_size for name in manifest.files} == {
        name: record.bytes for name, record in manifest.files.items()
    }
    sizes = [manifest.files[f"__{rank}_0_0.distcp"].bytes for rank in (0, 1)]
    assert max(sizes) < 0.6 * sum(sizes)
