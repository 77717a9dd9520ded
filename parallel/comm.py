"""Every collective that we issue goes through here, named with its kind.

One place to count them (tests do), and one place where a *wait* can be timed: what a collective costs a step is not how
long it runs, but how long compute waits for it. Collectives inside FSDP2 are torch's and pass elsewhere.
"""

from collections import Counter
from enum import Enum
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup, Work

T = TypeVar("T")


class CommKind(Enum):
    """What the communication is for."""

    dp = "dp"
    control = "control"
    """Numbers for logs and decisions; no tensors of the model."""


class Communicator:
    """Issues and awaits collectives; counts what it issued by (kind, name), and what was waited for by kind."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[CommKind, str]] = Counter()
        self.waits: Counter[CommKind] = Counter()

    def start_all_reduce(self, tensor: Tensor, group: ProcessGroup | None, kind: CommKind) -> Work:
        """Begin to sum `tensor` in place over `group` (None: the world). Pass the result to `wait`."""
        self.calls[kind, "all_reduce"] += 1
        work = dist.all_reduce(tensor, group=group, async_op=True)
        assert work is not None, "this rank is not in the group"
        return work

    def wait(self, work: Work, kind: CommKind) -> None:
        """Hold the compute stream (on CPU: this thread) until `work` is done."""
        self.waits[kind] += 1
        work.wait()

    def all_reduce(self, tensor: Tensor, group: ProcessGroup | None, kind: CommKind) -> Tensor:
        """Sum `tensor` in place over `group` (None: the world) and wait."""
        self.wait(self.start_all_reduce(tensor, group, kind), kind)
        return tensor

    def broadcast_object(self, value: T) -> T:
        """Rank 0's `value`, on every rank."""
        self.calls[CommKind.control, "broadcast_object"] += 1
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def all_gather_object(self, value: T) -> list[T]:
        """Every rank's `value`, by rank, on every rank."""
        self.calls[CommKind.control, "all_gather_object"] += 1
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for every rank, on the host: no GPU is drained for it."""
        self.calls[CommKind.control, "barrier"] += 1
        dist.all_reduce(torch.zeros(1))
