"""Tensors out of a checkpoint, into shards of any layout."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed import DistError, ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata

from models.config import ConfigError
from models.initialise import Shard
from train.checkpoint.manifest import DamagedCheckpoint, UnreadableCheckpoint
from train.checkpoint.planner import OtherModel, ShardLoadPlanner

UNWRITTEN = (EOFError, pickle.UnpicklingError)
"""What only bytes that nobody wrote lead to."""


def load_tensors(
    state: dict[str, Shard], checkpoint: Path, alone: bool = False, group: ProcessGroup | None = None
) -> None:
    """Fill `state`, tensors by logical name, from `checkpoint`. Called by all ranks together, or by one `alone`.
    `group`: a gloo group of all ranks to agree in; None: the world.

    Raises:
        DamagedCheckpoint: on every rank, if what is there makes no sense on one.
        UnreadableCheckpoint: on every rank, if one cannot read.
        ConfigError: on every rank, if it is of another model.
        BaseException: whatever else went wrong, where it did; DistError on the other ranks.
    """
    try:
        with warnings.catch_warnings():
            if alone:
                warnings.simplefilter("ignore")  # "torch.distributed is uninitialized": so it is
            dcp.load(
                state, storage_reader=_Files(checkpoint), planner=ShardLoadPlanner(), no_dist=alone, process_group=group
            )
    except CheckpointException as error:
        # torch's report is a BaseException with one failure a rank, the same on all.
        causes = {rank: cause for rank, (cause, _) in error.failures.items()}
        raise _meaning(causes, checkpoint, 0 if alone else dist.get_rank()) from error


class _Files(dcp.FileSystemReader):
    """torch's, but for an index that cannot be read: that is said by what it was, and not, with two tracebacks, by an
    AssertionError."""

    _failure: Exception | None = None

    def read_metadata(self) -> Metadata:
        """The index; empty if it cannot be read."""
        try:
            return super().read_metadata()
        except Exception as error:
            self._failure = error
            return Metadata({})

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *rest: Any, **named: Any) -> None:
        """Raises what `read_metadata` did not."""
        if self._failure:
            raise self._failure
        super().set_up_storage_reader(metadata, is_coordinator, *rest, **named)


def _meaning(causes: dict[int, BaseException], checkpoint: Path, own_rank: int) -> BaseException:
    """What to raise. Out of memory, an interrupt, a fault of ours are none of the checkpoint's."""
    for rank, cause in causes.items():
        if not isinstance(cause, (OtherModel, OSError, *UNWRITTEN)):
            return causes.get(own_rank) or DistError(f"rank {rank} failed while it read {checkpoint}")
    rank, cause = min(causes.items())
    why = f"rank {rank}: {(str(cause) or type(cause).__name__).splitlines()[0]}"
    if isinstance(cause, OtherModel):
        return ConfigError(f"{checkpoint} is of another model ({cause}): choose the model that was saved")
    return DamagedCheckpoint(checkpoint, why) if isinstance(cause, UNWRITTEN) else UnreadableCheckpoint(checkpoint, why)
