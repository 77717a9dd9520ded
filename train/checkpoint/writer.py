"""One save, from staged tensors to a folder with its final name. Runs in a thread, on a process group of its own.

    every rank   its files, each synced and hashed
    rank 0       .metadata, the manifest; all synced
    rank 0       asks whether the run is still ours; renames, syncs the folder above: committed
    every rank   learns whether it is; what failed is deleted

No CUDA, nothing of the main thread's groups; hashing and writing leave the interpreter to training.
"""

import errno
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch.distributed.checkpoint.storage import WriteResult

from models.initialise import Shard
from parallel.comm import Communicator
from train.checkpoint.folder import committed, drop, put_in_place, temporary
from train.checkpoint.hooks import Hooks
from train.checkpoint.manifest import FileRecord, Manifest, Progress
from train.checkpoint.planner import ShardSavePlanner
from train.checkpoint.save_plan import PlannedSave
from train.checkpoint.shard_files import write_metadata, write_shards
from train.faults.config import Place

REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room there"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make it writable"),
}


FENCED = "was given up: a newer start of this run has taken it over"


@dataclass(frozen=True)
class Outcome:
    """How a save ended; the same on every rank, but for the time."""

    step: int
    seconds: float
    """From its begin."""
    bytes: int = 0
    """On the disk, of all ranks."""
    failure: str = ""
    """One line, without what to do about the rest of the job; empty if it is committed."""
    fenced: bool = False
    """Whether it was given up to a newer start of the job."""


@dataclass(frozen=True)
class _Part:
    """What one rank wrote."""

    results: list[WriteResult]
    files: Mapping[str, FileRecord]
    trouble: str = ""


@dataclass(frozen=True)
class Writer:
    """All ranks call it together."""

    comm: Communicator
    """On a group that nobody else uses meanwhile."""
    hooks: Hooks

    def write(
        self, final: Path, plan: PlannedSave, staged: Mapping[str, Shard], progress: Progress, keep: int, begun: float
    ) -> Outcome:
        """Write `staged` as `final`, then drop all but the newest `keep` committed ones (0 keeps all). `begun`: by
        time.monotonic()."""
        written = temporary(final, self.hooks.attempt)
        trouble = self._trying(lambda: _make_anew(written)) if self.comm.rank == 0 else ""
        n_bytes = 0
        if not (trouble := self.comm.broadcast_object(trouble)):
            parts = self.comm.gather_object(self._write_part(written, plan, staged, progress.step))
            if self.comm.rank == 0 and not (trouble := next((part.trouble for part in parts if part.trouble), "")):
                files: dict[str, FileRecord] = {}
                trouble = self._trying(lambda: files.update(self._commit(final, plan, parts, progress)))
                n_bytes = sum(record.bytes for record in files.values())
            if self.comm.rank == 0 and trouble:
                shutil.rmtree(written, ignore_errors=True)
            trouble, n_bytes = self.comm.broadcast_object((trouble, n_bytes))
        seconds = time.monotonic() - begun
        if trouble:
            outcome = Outcome(progress.step, seconds, failure=f"{final} {trouble}", fenced=trouble == FENCED)
        else:
            outcome = Outcome(progress.step, seconds, n_bytes)
            self.hooks.committed(final, progress.step)
        if self.comm.rank == 0:
            self._conclude(outcome, final.parent, keep)
        return outcome

    def _write_part(self, written: Path, plan: PlannedSave, staged: Mapping[str, Shard], step: int) -> _Part:
        parts: list[_Part] = []

        def write() -> None:
            parts.append(_Part(*write_shards(written, self.comm.rank, plan.items, ShardSavePlanner(staged))))
            self.hooks.reach(Place.write, step)

        trouble = self._trying(write)
        return _Part([], {}, trouble) if trouble else parts[0]

    def _commit(self, final: Path, plan: PlannedSave, parts: list[_Part], progress: Progress) -> dict[str, FileRecord]:
        """On rank 0: the last files, and the name. All files."""
        written = temporary(final, self.hooks.attempt)
        assert plan.metadata is not None
        files = {name: record for part in parts for name, record in part.files.items()}
        files |= write_metadata(written, replace(plan.metadata), [part.results for part in parts])
        Manifest(progress, files).write(written)
        self.hooks.reach(Place.rename, progress.step)
        if not self.hooks.still_ours():
            raise _Fenced
        put_in_place(written, final)
        return files

    def _conclude(self, outcome: Outcome, folder: Path, keep: int) -> None:
        if outcome.failure:
            self.hooks.note("unsaved", step=outcome.step, why=outcome.failure)
            return
        self.hooks.note("committed", sync=True, step=outcome.step, bytes=outcome.bytes, seconds=outcome.seconds)
        if keep and self.hooks.still_ours():  # syncing may have taken long
            drop(committed(folder)[:-keep])

    def _trying(self, work: Callable[[], object]) -> str:
        """What went wrong with the disk, as the rest of a line that begins with the folder."""
        try:
            work()
        except _Fenced:
            return FENCED
        except OSError as error:
            remedy = REMEDIES.get(error.errno or 0, "look after that file system")
            return f"cannot be written (rank {self.comm.rank}: {error.strerror or error}): {remedy}"
        return ""


class _Fenced(Exception):
    """The run is another's."""


def _make_anew(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
