"""torch.distributed.checkpoint over Shards: what is a part of which whole is ours to say, not a tensor class's.

A planner lists what a rank writes or reads: of each name one box, its offset and sizes in the whole. torch does the
rest: it drops boxes that several ranks hold, checks that the boxes make up the whole, and reads across any two cuts.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from models.initialise import Shard


class ShardSavePlanner(DefaultSavePlanner):
    """Writes a dictionary of Shards."""

    def __init__(self, state: Mapping[str, Shard]) -> None:
        super().__init__(flatten_state_dict=False)
        self._state = state

    def create_local_plan(self) -> SavePlan:
        """One item for each shard that is not empty."""
        items = [_write_item(name, shard) for name, shard in self._state.items() if shard.local.numel()]
        return SavePlan(items, planner_data={})

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        """The storage behind an item."""
        return self._state[index.fqn].local


class OtherModel(ValueError):
    """A checkpoint lacks a tensor, or has it in another shape."""


class ShardLoadPlanner(DefaultLoadPlanner):
    """Fills a dictionary of Shards."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False)

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Take it as it is: torch's would look for tensors in it."""
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def create_local_plan(self) -> LoadPlan:
        """What of the saved boxes each shard takes.

        Raises:
            OtherModel: if a name is not there, or is of another shape.
        """
        assert self.metadata is not None
        items = []
        for name, shard in self.state_dict.items():
            stored = self.metadata.state_dict_metadata.get(name)
            if not isinstance(stored, TensorStorageMetadata) or tuple(stored.size) != shard.global_shape:
                there = f"is {list(stored.size)}" if isinstance(stored, TensorStorageMetadata) else "is not"
                raise OtherModel(f"{name} {there} there, and {list(shard.global_shape)} here")
            if shard.local.numel():
                items += create_read_items_for_chunk_list(name, stored, [_chunk(shard)])
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        """The storage that an item fills."""
        return self.state_dict[index.fqn].local


def _write_item(name: str, shard: Shard) -> WriteItem:
    return WriteItem(
        index=MetadataIndex(name, torch.Size(shard.offset)),
        type=WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            chunk=_chunk(shard),
            properties=TensorProperties.create_from_tensor(shard.local),
            size=torch.Size(shard.global_shape),
        ),
    )


def _chunk(shard: Shard) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(offsets=torch.Size(shard.offset), sizes=shard.local.shape)
