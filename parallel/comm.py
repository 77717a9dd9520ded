"""Every collective that we issue goes through here, named with its kind.

One place to count them (tests do: kind, operation, group, bytes), and one place where a *wait* is timed: what a
collective costs a step is not how long it runs, but how long compute waits for it. A collective is started, which gives
a `Pending`, and waited for: what stands between the two hides it. Collectives inside FSDP2 are torch's: they are timed
by parallel/clock/fsdp.py, and counted by parallel/traffic/meter.py.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup, Work

from parallel.clock.phase_clock import Clock
from parallel.comm_kind import CommKind

T = TypeVar("T")

OPERATIONS = frozenset(
    [
        *("all_reduce", "all_reduce_max", "all_reduce_on_host", "all_gather", "all_gather_numbers", "reduce_scatter"),
        *("all_to_all", "send", "receive", "broadcast", "barrier", "all_gather_wanted", "reduce_scatter_wanted"),
        *("broadcast_object", "all_gather_object", "gather_object", "scatter_object"),
    ]
)
"""What ranks are counted to say to each other, FSDP2 too. Of what is wanted the device alone knows the bytes: those of
all_gather and reduce_scatter are counted, a bound."""

# Renamed in torch 2.13, which warns at the old names; 2.11 has only those.
_all_gather: Callable[..., Work | None] = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter: Callable[..., Work | None] = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


class Issued(NamedTuple):
    """One collective as this rank saw it."""

    kind: CommKind
    operation: str
    group_size: int
    n_bytes: int
    """That this rank puts in: 0 for a receive. So the ranks' sum does not depend on who sends how much to whom."""


class Awaited(Protocol):
    """torch.distributed's Work, or another's."""

    def wait(self) -> object:
        """Hold the current stream (on CPU: this thread) until it is done."""

    def is_completed(self) -> bool:
        """Whether it is known to be."""


@dataclass(frozen=True)
class Pending:
    """A collective under way. `output` is not to be read before `Communicator.wait` has taken this."""

    output: Tensor
    work: Awaited
    kind: CommKind
    operation: str
    group: ProcessGroup | None
    """None: the world."""
    number: int
    """Of all that its Communicator began: a timeline shows where it was begun and where it was waited for."""


class Communicator:
    """Issues and awaits collectives; counts what it issued, and what was waited for by kind."""

    def __init__(self, clock: Clock | None = None, everyone: ProcessGroup | None = None) -> None:
        """`clock` times the waits; None: nothing does. `everyone`: another gloo group of all ranks, for all that
        is exchanged on the host: for a thread of its own, or with another patience; None: the world."""
        self.clock, self._everyone = clock or Clock(), everyone
        self.issued: Counter[Issued] = Counter()
        self.waits: Counter[CommKind] = Counter()
        self._n_begun, self._aside = 0, False

    @contextmanager
    def aside(self, stream: torch.cuda.Stream | None) -> Iterator[None]:
        """Issue and wait on `stream` instead of the compute stream, for which no such wait is one: none is timed. None,
        where there are no streams: this thread waits as always."""
        if stream is None:
            yield
            return
        with torch.cuda.stream(stream):
            self._aside = True
            try:
                yield
            finally:
                self._aside = False

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
        if self._aside:
            pending.work.wait()
            return pending.output
        over = pending.output.is_cuda and pending.work.is_completed()
        with self.clock.waiting(pending.kind, pending.operation, pending.group, pending.number, over):
            pending.work.wait()
        return pending.output

    def start_all_reduce(self, tensor: Tensor, group: ProcessGroup | None, kind: CommKind) -> Pending:
        """Begin to sum `tensor` in place over `group` (None: the world)."""
        with self._issuing(kind, "all_reduce", group, tensor) as made:
            return made(tensor, dist.all_reduce(tensor, group=group, async_op=True))

    def all_reduce(self, tensor: Tensor, group: ProcessGroup | None, kind: CommKind) -> Tensor:
        """Sum `tensor` in place over `group` (None: the world) and wait."""
        return self.wait(self.start_all_reduce(tensor, group, kind))

    def all_reduce_max(self, tensor: Tensor, group: ProcessGroup | None, kind: CommKind) -> Tensor:
        """The largest of all ranks' elements, in place, and wait."""
        with self._issuing(kind, "all_reduce_max", group, tensor) as made:
            pending = made(tensor, dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=group, async_op=True))
        return self.wait(pending)

    def start_all_gather(self, tensor: Tensor, group: ProcessGroup, kind: CommKind) -> Pending:
        """Begin to gather [n, …] of every rank, equal shapes, into [ranks·n, …], in rank order."""
        output = tensor.new_empty(group.size() * tensor.shape[0], *tensor.shape[1:])
        with self._issuing(kind, "all_gather", group, tensor) as made:
            return made(output, _all_gather(output, tensor.contiguous(), group=group, async_op=True))

    def start_reduce_scatter(self, tensor: Tensor, group: ProcessGroup, kind: CommKind) -> Pending:
        """Begin to sum [ranks·n, …] over the ranks and keep this rank's [n, …] of it."""
        output = tensor.new_empty(tensor.shape[0] // group.size(), *tensor.shape[1:])
        with self._issuing(kind, "reduce_scatter", group, tensor) as made:
            return made(output, _reduce_scatter(output, tensor.contiguous(), group=group, async_op=True))

    def start_all_to_all(
        self, tensor: Tensor, sent: Sequence[int], received: Sequence[int], group: ProcessGroup, kind: CommKind
    ) -> Pending:
        """Begin to send `sent[r]` neighbouring rows of [Σ sent, …] to each rank r, and to receive `received[r]`."""
        output = tensor.new_empty(sum(received), *tensor.shape[1:])
        rows = tensor.contiguous()
        with self._issuing(kind, "all_to_all", group, tensor) as made:
            work = dist.all_to_all_single(output, rows, list(received), list(sent), group=group, async_op=True)
            return made(output, work)

    def start_send(self, tensor: Tensor, to_group_rank: int, group: ProcessGroup, kind: CommKind) -> Pending:
        """Begin to send `tensor` to a rank of `group`. It must stay as it is until the wait."""
        with self._issuing(kind, "send", group, tensor) as made:
            return made(tensor, dist.isend(tensor, group=group, group_dst=to_group_rank))

    def start_receive(self, buffer: Tensor, from_group_rank: int, group: ProcessGroup, kind: CommKind) -> Pending:
        """Begin to fill `buffer` from a rank of `group`. What one rank sends another arrives in order."""
        with self._issuing(kind, "receive", group, None) as made:
            return made(buffer, dist.irecv(buffer, group=group, group_src=from_group_rank))

    def start_own(
        self,
        operation: str,
        tensor: Tensor,
        group: ProcessGroup,
        kind: CommKind,
        start: Callable[[], tuple[Tensor, Awaited]],
    ) -> Pending:
        """Begin what kernels of ours do with `tensor`: `start` enqueues them, and gives the output."""
        with self._issuing(kind, operation, group, tensor) as made:
            return made(*start())

    def broadcast(self, tensor: Tensor, source: int, kind: CommKind) -> Tensor:
        """Give every rank of the world what rank `source` has in `tensor`, in place, and wait."""
        with self._issuing(kind, "broadcast", None, tensor) as made:
            pending = made(tensor, dist.broadcast(tensor, source, async_op=True))
        return self.wait(pending)

    @property
    def size(self) -> int:
        """Ranks in the world."""
        return dist.get_world_size()

    @property
    def rank(self) -> int:
        """This one, of these."""
        return dist.get_rank()

    def broadcast_object(self, value: T) -> T:
        """Rank 0's `value`, on every rank."""
        self.issued[Issued(CommKind.control, "broadcast_object", self.size, 0)] += 1
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._everyone, device=torch.device("cpu"))
        return box[0]

    def all_gather_object(self, value: T) -> list[T]:
        """Every rank's `value`, by rank, on every rank."""
        self.issued[Issued(CommKind.control, "all_gather_object", self.size, 0)] += 1
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._everyone)
        return values

    def gather_object(self, value: T) -> list[T]:
        """Every rank's `value`, by rank, on rank 0; nothing on the others."""
        self.issued[Issued(CommKind.control, "gather_object", self.size, 0)] += 1
        values: list[Any] = [None] * self.size if self.rank == 0 else []
        dist.gather_object(value, values or None, dst=0, group=self._everyone)
        return values

    def scatter_object(self, values: Sequence[T]) -> T:
        """The one of rank 0's `values`, by rank, that is this rank's."""
        self.issued[Issued(CommKind.control, "scatter_object", self.size, 0)] += 1
        box: list[Any] = [None]
        dist.scatter_object_list(box, list(values) or None, src=0, group=self._everyone)
        return box[0]

    def all_gather_numbers(self, numbers: Mapping[str, float]) -> dict[str, list[float]]:
        """By name, every rank's number, in rank order; all ranks have the same names in the same order. On the host: no
        GPU is drained for it."""
        own = torch.tensor(list(numbers.values()), dtype=torch.float64)
        self._count(CommKind.control, "all_gather_numbers", None, own)
        rows = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, own, group=self._everyone)
        return dict(zip(numbers, torch.stack(rows).T.tolist(), strict=True))

    def all_reduce_on_host(self, tensors: Mapping[ProcessGroup | None, Tensor], op: dist.ReduceOp.RedOpType) -> None:
        """Reduce each CPU tensor in place over its group, all groups at once: in whatever order ranks name them, none
        waits for another."""
        works = []
        for group, tensor in tensors.items():
            self._count(CommKind.control, "all_reduce_on_host", group, tensor)
            works.append(dist.all_reduce(tensor, op=op, group=group or self._everyone, async_op=True))
        for work in works:
            assert work is not None
            work.wait()

    def barrier(self) -> None:
        """Wait for every rank, on the host: no GPU is drained for it."""
        self.issued[Issued(CommKind.control, "barrier", dist.get_world_size(), 0)] += 1
        dist.all_reduce(torch.zeros(1), group=self._everyone)

    @contextmanager
    def _issuing(
        self, kind: CommKind, operation: str, group: ProcessGroup | None, put_in: Tensor | None
    ) -> Iterator[Callable[[Tensor, Awaited | None], Pending]]:
        """Count a collective and show it to a profiler; gives what makes a Pending of its output and its work."""
        self._count(kind, operation, group, put_in)
        self._n_begun += 1
        number = self._n_begun

        def made(output: Tensor, work: Awaited | None) -> Pending:
            assert work is not None, "this rank is not in the group"
            return Pending(output, work, kind, operation, group, number)

        with self.clock.issuing(kind, operation, number):
            yield made

    def _count(self, kind: CommKind, operation: str, group: ProcessGroup | None, put_in: Tensor | None) -> None:
        size = group.size() if group is not None else dist.get_world_size()
        n_bytes = 0 if put_in is None else put_in.numel() * put_in.element_size()
        self.issued[Issued(kind, operation, size, n_bytes)] += 1
