"""Checkpoints by logical name, atomic, through torch.distributed.checkpoint.

    checkpoints/step-00000100/    tensors by logical name (parallel/logical_state.py), and progress.json
    checkpoints/step-00000100.tmp one that was never finished; no reader looks at it

A save writes into the .tmp folder, syncs, and renames: a folder with the final name is complete. Nothing in a step
draws random numbers (start, sample order and synthetic tokens are functions of the seed), so there is no generator's
state to keep.
"""

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from models.config import ConfigError
from models.initialise import Shard
from parallel.comm import Communicator
from parallel.engine import Engine
from train.checkpoint_planner import ShardLoadPlanner, ShardSavePlanner

FORMAT = 1
PROGRESS_FILE = "progress.json"


@dataclass(frozen=True)
class Progress:
    """How far a job is: all that a resume needs beside tensors."""

    step: int
    """Optimizer steps done; the next one trains on samples [step·G, (step+1)·G)."""
    tokens: int
    """Tokens trained on."""


class CheckpointStore:
    """The checkpoints of one run folder. Every method that ranks call together says so."""

    def __init__(self, folder: Path, comm: Communicator, rank: int) -> None:
        self._folder, self._comm, self._rank = folder, comm, rank

    def save(self, engine: Engine, progress: Progress, keep: int) -> Path:
        """Save, then drop all but the newest `keep` (0 keeps all). Called by all ranks together.

        Raises:
            ConfigError: on every rank, if a file of it cannot be written on one. Those before it are as they were.
        """
        final = self._folder / f"step-{progress.step:08d}"
        temporary = _temporary(final)
        if self._rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self._comm.barrier()
        state = engine.weights() | engine.moments()
        try:
            dcp.save(
                state,
                storage_writer=dcp.FileSystemWriter(temporary, sync_files=True),
                planner=ShardSavePlanner(),
            )
        except CheckpointException as error:
            raise ConfigError(f"{final} cannot be written ({_first_failure(error)}): make room there") from error
        if self._rank == 0:
            record = {"format": FORMAT} | asdict(progress)
            _write_synced(temporary / PROGRESS_FILE, json.dumps(record))
            _sync_folder(temporary)
            shutil.rmtree(final, ignore_errors=True)  # an incomplete one of this name, or the rename would fail
            temporary.rename(final)
            _sync_folder(self._folder)
            if keep:
                self._drop(committed(self._folder)[:-keep])
        self._comm.barrier()
        return final

    def newest_step(self) -> int | None:
        """After which step the newest checkpoint is; None if there is none. Called by all ranks together."""
        newest = newest_checkpoint(self._folder) if self._rank == 0 else None
        return self._comm.broadcast_object(read_progress(newest).step if newest else None)

    def resume(self, engine: Engine) -> Progress:
        """Load the newest checkpoint, or do nothing: a new job. Called by all ranks together."""
        if self._rank == 0:
            self._drop(self._folder.glob("step-*.tmp"))
        # Rank 0 looks and tells: on a network file system ranks may not see the same folder at the same moment.
        newest = self._comm.broadcast_object(newest_checkpoint(self._folder) if self._rank == 0 else None)
        if newest is None:
            return Progress(step=0, tokens=0)
        progress = read_progress(newest)
        state = engine.weights() | engine.moments()
        load_tensors(state, newest)
        engine.take_state(state, progress.step)
        return progress

    def _drop(self, checkpoints: Iterable[Path]) -> None:
        """Delete folders, by a name first that no reader looks at: a kill half-way leaves nothing that looks whole."""
        for path in list(checkpoints):
            doomed = path if path.suffix == ".tmp" else path.rename(_temporary(path))
            shutil.rmtree(doomed, ignore_errors=True)  # what a network file system holds on to goes at the next resume


def load_tensors(state: dict[str, Shard], checkpoint: Path, alone: bool = False) -> None:
    """Fill `state`, tensors by logical name, from `checkpoint`. Called by all ranks together, or by one `alone`.

    Raises:
        ConfigError: on every rank, if a file of it is gone or broken on one.
    """
    try:
        with warnings.catch_warnings():
            if alone:
                warnings.simplefilter("ignore")  # "torch.distributed is uninitialized": so it is
            dcp.load(state, storage_reader=dcp.FileSystemReader(checkpoint), planner=ShardLoadPlanner(), no_dist=alone)
    except CheckpointException as error:
        raise ConfigError(
            f"{checkpoint} is damaged ({_first_failure(error)}): move it away, or name another step-… folder"
        ) from error


def committed(folder: Path) -> list[Path]:
    """Complete checkpoints in `folder`, oldest first."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(p for p in found if re.fullmatch(r"step-\d+", p.name) and (p / PROGRESS_FILE).exists())


def newest_checkpoint(folder: Path) -> Path | None:
    """The last complete checkpoint in `folder`."""
    found = committed(folder)
    return found[-1] if found else None


def check_steps_left(folder: Path, steps: int) -> None:
    """Refuse a job of `steps` steps whose checkpoints in `folder` are past the last one.

    Raises:
        ConfigError: naming the step that was reached.
    """
    newest = newest_checkpoint(folder)
    if newest and (done := read_progress(newest).step) > steps:
        raise ConfigError(
            f"train.steps={steps}, and {newest} is after step {done}: set it to at least {done}, "
            "or name another run.name"
        )


def read_progress(checkpoint: Path) -> Progress:
    """What `checkpoint` says of itself.

    Raises:
        ConfigError: if it is damaged, or was written by a newer program.
    """
    path = checkpoint / PROGRESS_FILE
    try:
        record = json.loads(path.read_text())
        if record["format"] > FORMAT:
            raise ConfigError(f"{checkpoint} has a newer format than this program reads ({FORMAT}): update switchyard")
        progress = Progress(step=int(record["step"]), tokens=int(record["tokens"]))
    except ConfigError:
        raise
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged: move {checkpoint.name} away, and the one before it counts") from error
    return progress


def _first_failure(error: CheckpointException) -> str:
    """What torch's report, a BaseException with one failure a rank, says first, as one line."""
    rank, (cause, _) = next(iter(error.failures.items()))
    return f"rank {rank}: {(str(cause) or type(cause).__name__).splitlines()[0]}"


def _temporary(final: Path) -> Path:
    return final.with_name(final.name + ".tmp")


def _write_synced(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
