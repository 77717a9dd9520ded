"""Every collective that we issue goes through here, named with its kind.

One place to count them (tests do: kind, operation, group, bytes), and one place where a *wait* can be timed: what a
collective costs a step is not how long it runs, but how long compute waits for it. A collective is started, which gives
a `Pending`, and waited for: what stands between the two hides it. Collectives inside FSDP2 are torch's and pass
elsewhere.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup, Work

T = TypeVar("T")

# Renamed in torch 2.13, which warns at the old names; 2.11 has only those.
_all_gather: Callable[..., Work | None] = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter: Callable[..., Work | None] = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


class CommKind(Enum):
    """What the communication is for."""

    dp = "dp"
    """Gradients and parameters between data-parallel ranks."""
    fsdp = "fsdp"
    """The same inside FSDP2. torch issues these: no Communicator sees them, parallel/traffic/meter.py does."""
    tp = "tp"
    """Activations and gradients between tensor-parallel ranks."""
    ep = "ep"
    """Rows to and from the ranks of their experts."""
    pp = "pp"
    """Activations and gradients between pipeline stages."""
    control = "control"
    """Numbers for logs and decisions; no tensors of the model."""


class Issued(NamedTuple):
    """One collective as this rank saw it."""

    kind: CommKind
    operation: str
    group_size: int
    n_bytes: int
    """That this rank puts in: 0 for a receive. So the ranks' sum does not depend on who sends how much to whom."""


@dataclass(frozen=True)
class Pending:
    """A collective under way. `output` is not to be read before `Communicator.wait` has taken this."""

    output: Tensor
    work: Work
    kind: CommKind


class Communicator:
    """Issues and awaits collectives; counts what it issued, and what was waited for by kind."""

    def __init__(self) -> None:
        self.issued: Counter[Issued] = Counter()
        self.waits: Counter[CommKind] = Counter()

    @property
    def calls(self) -> Counter[tuple[CommKind, str]]:
        """How often each operation of each kind was issued."""
        calls: Counter[tuple[CommKind, str]] = Counter()
        for issued, count in self.issued.items():
            calls[issued.kind, issued.operation] += count
        return calls

    def wait(self, pending: Pending) -> Tensor:
        """Hold the compute stream (on CPU: this thread) until `pending` is done; its output."""
        self.waits[pending.kind] += 1
        pending.work.wait()
        return pending.output

    def start_all_reduce(self, tensor: Tensor, group: ProcessGroup | None, kind: CommKind) -> Pending:
        """Begin to sum `tensor` in place over `group` (None: the world)."""
        self._count(kind, "all_reduce", group, tensor)
        return _pending(tensor, dist.all_reduce(tensor, group=group, async_op=True), kind)

    def all_reduce(self, tensor: Tensor, group: ProcessGroup | None, kind: CommKind) -> Tensor:
        """Sum `tensor` in place over `group` (None: the world) and wait."""
        return self.wait(self.start_all_reduce(tensor, group, kind))

    def all_reduce_max(self, tensor: Tensor, group: ProcessGroup | None, kind: CommKind) -> Tensor:
        """The largest of all ranks' elements, in place, and wait."""
        self._count(kind, "all_reduce_max", group, tensor)
        return self.wait(
            _pending(tensor, dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=group, async_op=True), kind)
        )

    def start_all_gather(self, tensor: Tensor, group: ProcessGroup, kind: CommKind) -> Pending:
        """Begin to gather [n, …] of every rank, equal shapes, into [ranks·n, …], in rank order."""
        output = tensor.new_empty(group.size() * tensor.shape[0], *tensor.shape[1:])
        self._count(kind, "all_gather", group, tensor)
        return _pending(output, _all_gather(output, tensor.contiguous(), group=group, async_op=True), kind)

    def start_reduce_scatter(self, tensor: Tensor, group: ProcessGroup, kind: CommKind) -> Pending:
        """Begin to sum [ranks·n, …] over the ranks and keep this rank's [n, …] of it."""
        output = tensor.new_empty(tensor.shape[0] // group.size(), *tensor.shape[1:])
        self._count(kind, "reduce_scatter", group, tensor)
        return _pending(output, _reduce_scatter(output, tensor.contiguous(), group=group, async_op=True), kind)

    def start_all_to_all(
        self, tensor: Tensor, sent: Sequence[int], received: Sequence[int], group: ProcessGroup, kind: CommKind
    ) -> Pending:
        """Begin to send `sent[r]` neighbouring rows of [Σ sent, …] to each rank r, and to receive `received[r]`."""
        output = tensor.new_empty(sum(received), *tensor.shape[1:])
        self._count(kind, "all_to_all", group, tensor)
        work = dist.all_to_all_single(
            output, tensor.contiguous(), list(received), list(sent), group=group, async_op=True
        )
        return _pending(output, work, kind)

    def start_send(self, tensor: Tensor, to_group_rank: int, group: ProcessGroup, kind: CommKind) -> Pending:
        """Begin to send `tensor` to a rank of `group`. It must stay as it is until the wait."""
        self._count(kind, "send", group, tensor)
        return _pending(tensor, dist.isend(tensor, group=group, group_dst=to_group_rank), kind)

    def start_receive(self, buffer: Tensor, from_group_rank: int, group: ProcessGroup, kind: CommKind) -> Pending:
        """Begin to fill `buffer` from a rank of `group`. What one rank sends another arrives in order."""
        self._count(kind, "receive", group, None)
        return _pending(buffer, dist.irecv(buffer, group=group, group_src=from_group_rank), kind)

    def broadcast(self, tensor: Tensor, source: int, kind: CommKind) -> Tensor:
        """Give every rank of the world what rank `source` has in `tensor`, in place, and wait."""
        self._count(kind, "broadcast", None, tensor)
        return self.wait(_pending(tensor, dist.broadcast(tensor, source, async_op=True), kind))

    def broadcast_object(self, value: T) -> T:
        """Rank 0's `value`, on every rank."""
        self.issued[Issued(CommKind.control, "broadcast_object", dist.get_world_size(), 0)] += 1
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def all_gather_object(self, value: T) -> list[T]:
        """Every rank's `value`, by rank, on every rank."""
        self.issued[Issued(CommKind.control, "all_gather_object", dist.get_world_size(), 0)] += 1
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for every rank, on the host: no GPU is drained for it."""
        self.issued[Issued(CommKind.control, "barrier", dist.get_world_size(), 0)] += 1
        dist.all_reduce(torch.zeros(1))

    def _count(self, kind: CommKind, operation: str, group: ProcessGroup | None, put_in: Tensor | None) -> None:
        size = group.size() if group is not None else dist.get_world_size()
        n_bytes = 0 if put_in is None else put_in.numel() * put_in.element_size()
        self.issued[Issued(kind, operation, size, n_bytes)] += 1


def _pending(output: Tensor, work: Work | None, kind: CommKind) -> Pending:
    assert work is not None, "this rank is not in the group"
    return Pending(output, work, kind)
