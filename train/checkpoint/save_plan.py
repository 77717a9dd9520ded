"""Which rank writes what of a state: boxes that several ranks hold are written by one, about as many bytes by each.

Planning is Python over every tensor of every rank, on rank 0: seconds for some ten thousands. So it is done once for a
state, and again only where a rank holds other boxes than it did. torch keeps plans too, but in its planner's class, for
one job a process, and compares them item by item.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, WriteItem

from models.initialise import Shard
from parallel.comm import Communicator
from train.checkpoint.planner import ShardSavePlanner

Boxes = list[tuple[str, tuple[int, ...], tuple[int, ...], torch.Size, torch.dtype]]


@dataclass(frozen=True)
class PlannedSave:
    """One rank's part."""

    items: list[WriteItem]
    metadata: Metadata | None
    """Of the whole, on rank 0."""


class SavePlans:
    """The plan of the state that was last saved. All ranks call it together."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self._boxes: Boxes | None = None
        self._plan = PlannedSave([], None)

    def plan(self, state: Mapping[str, Shard]) -> PlannedSave:
        """Who writes what of `state`."""
        boxes = [(name, s.global_shape, s.offset, s.local.shape, s.local.dtype) for name, s in state.items()]
        if any(self._comm.all_gather_numbers({"changed": boxes != self._boxes})["changed"]):
            self._plan, self._boxes = self._made(state), boxes
        return self._plan

    def _made(self, state: Mapping[str, Shard]) -> PlannedSave:
        planner = ShardSavePlanner(state)
        all_plans = self._comm.gather_object(planner.create_local_plan())
        plans: list[SavePlan] = []
        metadata: Any = None
        if self._comm.rank == 0:
            plans, metadata = planner.create_global_plan(all_plans)
        return PlannedSave(self._comm.scatter_object(plans).items, metadata)
