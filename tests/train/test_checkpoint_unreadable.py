"""What cannot be read now is not damaged: nothing is renamed, and the start ends with one line, or looks again."""

import os
import resource
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from harness.layout_run import FSDP, SINGLE
from harness.worker_pool import WorkerPool
from torch.distributed import DistError

from parallel.comm import Communicator
from tests.train.test_checkpoint import build, save
from train.checkpoint.hooks import Hooks
from train.checkpoint.manifest import DamagedCheckpoint, Manifest, UnreadableCheckpoint
from train.checkpoint.planner import ShardLoadPlanner
from train.checkpoint.store import CheckpointStore
from train.checkpoint.verify import verify
from train.failure import FAILED, JobEnds
from train.faults.config import Place

NAMES = ["step-00000007", "step-00000008"]


@pytest.fixture
def checkpoints(pool: WorkerPool, tmp_path: Path) -> Path:
    for step in (7, 8):
        pool.run(1, save, SINGLE, tmp_path / "checkpoints", step)
    return tmp_path / "checkpoints"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def ended(folder: Path) -> str:
    """The line with which a resume ends the job."""
    engine, _, comm = build(FSDP, seed=99)
    with pytest.raises(JobEnds) as ends:
        CheckpointStore(folder, comm, behind=True).resume(engine)
    assert (ends.value.cause, ends.value.exit_code) == ("failed", FAILED)
    return str(ends.value)


@pytest.mark.parametrize("name", ["manifest.json", "__0_0_0.distcp"])
def test_a_disk_that_does_not_tell_ends_the_start(name: str, checkpoints: Path, pool: WorkerPool) -> None:
    path = checkpoints / "step-00000008" / name
    path.unlink()
    path.symlink_to(path)  # to be resolved for ever
    (line, same) = pool.run(2, ended, checkpoints)
    assert line == same
    assert line.startswith(f"{checkpoints}/step-00000008 cannot be read now (")
    assert line.endswith(f"{name}: Too many levels of symbolic links): look after that file system, and start again")
    assert names(checkpoints) == NAMES


def found(checkpoint: Path, trouble: Callable[[], Path | None]) -> tuple[type[Exception], str]:
    """What all ranks find together, when rank 1 has `trouble`, and perhaps another folder for it."""
    comm = Communicator()
    manifest = Manifest.read(checkpoint)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    comm.all_gather_object(0)  # its sockets are open
    before = open_descriptors()
    seen = (trouble() if comm.rank == 1 else None) or checkpoint
    try:
        verify(seen, manifest, comm)
    except (DamagedCheckpoint, UnreadableCheckpoint) as error:
        return type(error), error.why
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in open_descriptors() - before:
            os.close(descriptor)
    raise AssertionError("all is well")


def open_descriptors() -> set[int]:
    listed = map(int, os.listdir("/proc/self/fd"))
    return {number for number in listed if os.path.exists(f"/proc/self/fd/{number}")}  # not the listing's own


def no_descriptors() -> None:
    """Not one file more can be opened: those between the open ones are taken too."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_descriptors()) + 1, most))
    with suppress(OSError):
        while True:
            os.open(os.devnull, os.O_RDONLY)


def not_there_yet(checkpoint: Path) -> Path:
    """As a network file system may show it to one rank."""
    other = Path(shutil.copytree(checkpoint, checkpoint.with_name("of-rank-1")))
    for path in other.glob("*.distcp"):
        path.unlink()
    (other / ".metadata").unlink()
    return other


def test_one_rank_that_cannot_look_is_no_proof(checkpoints: Path, pool: WorkerPool) -> None:
    checkpoint = checkpoints / "step-00000008"
    for error, why in pool.run(2, found, checkpoint, no_descriptors):
        assert error is UnreadableCheckpoint
        assert why.startswith("rank 1: ")
        assert why.endswith(": Too many open files")
    for error, why in pool.run(2, found, checkpoint, partial(not_there_yet, checkpoint)):
        assert error is UnreadableCheckpoint
        assert why.startswith("rank 1: ")
        assert why.endswith(": No such file or directory")
    (checkpoint / ".metadata").unlink()
    for error, why in pool.run(2, found, checkpoint, no_descriptors):
        assert (error, why) == (DamagedCheckpoint, ".metadata: No such file or directory")


class Fails(ShardLoadPlanner):
    """On rank 1, as memory does that is full."""

    error: type[BaseException]

    def lookup_tensor(self, index: object) -> torch.Tensor:
        raise self.error("on purpose")


def load_failing(folder: Path, kind: type[BaseException]) -> str:
    if torch.distributed.get_rank() == 1:
        Fails.error = kind
        ShardLoadPlanner.lookup_tensor = Fails.lookup_tensor  # type: ignore[method-assign]
        ShardLoadPlanner.error = kind  # type: ignore[attr-defined]
    engine, _, comm = build(FSDP, seed=99)
    try:
        CheckpointStore(folder, comm, behind=True).resume(engine)
    except BaseException as error:
        return f"{'DistError' if isinstance(error, DistError) else type(error).__name__}: {error}"
    return "loaded"


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, KeyboardInterrupt, ZeroDivisionError])
def test_what_fails_while_a_good_one_is_read_is_not_its_fault(
    kind: type[BaseException], checkpoints: Path, pool: WorkerPool
) -> None:
    try:
        others, failed = pool.run(2, load_failing, checkpoints, kind)
    finally:
        pool.close()
    assert failed == f"{kind.__name__}: on purpose"
    assert others == f"DistError: rank 1 failed while it read {checkpoints}/step-00000008"
    assert names(checkpoints) == NAMES


def resume_while_it_goes(folder: Path, at_look: bool) -> int:
    """The step of what is loaded, where an older start of the job drops the newest one meanwhile."""
    left = [folder / "step-00000008"]

    def drop(place: Place, step: int) -> None:
        if place is Place.load and left:
            shutil.rmtree(left.pop())

    engine, _, comm = build(FSDP, seed=99)
    rank_0 = comm.rank == 0
    store = CheckpointStore(folder, comm, behind=True, hooks=Hooks(reach=drop) if rank_0 and not at_look else None)
    if rank_0 and at_look:
        look = store._look

        def look_and_drop() -> list[Path]:
            seen = look()
            drop(Place.load, 0)
            return seen

        store._look = look_and_drop  # type: ignore[method-assign]
    return store.resume(engine).progress.step


@pytest.mark.parametrize("at_look", [True, False])
def test_one_that_went_away_meanwhile_is_not_damaged(at_look: bool, checkpoints: Path, pool: WorkerPool) -> None:
    assert pool.run(2, resume_while_it_goes, checkpoints, at_look) == [7, 7]
    assert names(checkpoints) == NAMES[:1]
