"""Tensors out of a checkpoint, into shards of any layout."""

import warnings
from pathlib import Path

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from models.config import ConfigError
from models.initialise import Shard
from train.checkpoint.manifest import DamagedCheckpoint
from train.checkpoint.planner import OtherModel, ShardLoadPlanner


def load_tensors(state: dict[str, Shard], checkpoint: Path, alone: bool = False) -> None:
    """Fill `state`, tensors by logical name, from `checkpoint`. Called by all ranks together, or by one `alone`.

    Raises:
        DamagedCheckpoint: on every rank, if a file of it is gone or broken on one.
        ConfigError: on every rank, if it is of another model.
    """
    try:
        with warnings.catch_warnings():
            if alone:
                warnings.simplefilter("ignore")  # "torch.distributed is uninitialized": so it is
            dcp.load(state, storage_reader=dcp.FileSystemReader(checkpoint), planner=ShardLoadPlanner(), no_dist=alone)
    except CheckpointException as error:
        # torch's report is a BaseException with one failure a rank.
        rank, (cause, _) = next(iter(error.failures.items()))
        if isinstance(cause, OtherModel):
            raise ConfigError(f"{checkpoint} is of another model ({cause}): choose the model that was saved") from error
        what = (str(cause) or type(cause).__name__).splitlines()[0]
        raise DamagedCheckpoint(checkpoint, f"rank {rank}: {what}") from error
