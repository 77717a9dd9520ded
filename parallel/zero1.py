"""ZeRO-1 (Rajbhandari et al. 2020): weights whole on every rank, masters and moments shared out.

    backward    gradients in the reduce dtype, added up over micro-batches
    reduce      reduce_scatter    each rank gets the sum of its rows                     behind backward
    optimizer                     fp32 masters and moments of its rows
    publish     all_gather        masters rounded to the compute dtype, half the bytes   then the next forward; with
                                                                                         early updates behind backward

Against FSDP2, no parameter is gathered or cast within the step; the price is whole weights and gradients on each rank.
Rank r of n takes rows [r·c, (r+1)·c) of dimension 0, with c = ceil(rows / n): the last ranks may get fewer, or none. A
bucket's buffer lies rank by rank, as the collectives want it:

    rank 0: rows of a, rows of b, …  │  rank 1: rows of a, rows of b, …  │  …

What no other rank holds (an expert, where experts are shared out over all ranks; on one rank everything) is in no
bucket. The gradient of a step's only micro-batch is its sum, as backward made it; from the second on they add up in the
reduce dtype. Masters are rounded straight into what modules compute with, by the optimizer where it does so itself; of
such masters it may keep only what their rounded copies lack (parallel/halves.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from parallel.buckets import Bucket, BucketQueue, Reduced, fill_buckets, shared_out
from parallel.comm import Communicator, Pending
from parallel.comm_kind import CommKind
from parallel.config import PrecisionConfig
from parallel.early_update import EarlyUpdates
from parallel.owned import Owned, place
from parallel.pipeline.action import StageKey
from parallel.tensor_parallel.split import Split

AddUp = Callable[[Tensor, Tensor, torch.dtype], Tensor]
"""A sum and one more gradient to their sum in a dtype: in place of the first, if that has it."""


def add_up(total: Tensor, gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """By torch."""
    return total.to(dtype).add_(gradient)


@dataclass(frozen=True)
class _Slice:
    """Where a parameter lies in its bucket's buffer, [ranks, elements]."""

    parameter: nn.Parameter
    begin: int
    rows: int
    """Of each rank, but for the last ones."""
    row_size: int

    def of_rank(self, buffer: Tensor, rank: int) -> Tensor:
        """Rank `rank`'s rows in `buffer`, which is that rank's part: [rows of it, …]."""
        n = max(0, min(self.rows, len(self.parameter) - rank * self.rows))
        flat = buffer.narrow(0, self.begin, n * self.row_size)
        return flat.view(n, *self.parameter.shape[1:])

    def rows_of(self, rank: int) -> slice:
        """Of the parameter."""
        return slice(rank * self.rows, (rank + 1) * self.rows)


class _Alone:
    """A parameter that no other rank holds, and the sum of its gradients over a step's micro-batches."""

    def __init__(self, parameter: nn.Parameter, dtype: torch.dtype, add: AddUp) -> None:
        self.parameter = parameter
        self.gradient: Tensor | None = None
        self._dtype, self._add = dtype, add

    def take(self) -> None:
        """Add this micro-batch's gradient, and free it."""
        gradient, self.parameter.grad = self.parameter.grad, None
        assert gradient is not None
        # In 16 bits, if it is the only one: a copy in 32 would say no more.
        self.gradient = gradient if self.gradient is None else self._add(self.gradient, gradient, self._dtype)


class ShardedOptimizer:
    """See above; a GradientSync whose masters are this rank's rows."""

    def __init__(
        self,
        parameters: Reduced,
        splits: Mapping[str, Split],
        n_holders: Mapping[str, int],
        precision: PrecisionConfig,
        comm: Communicator,
        bucket_bytes: int,
        overlap: bool,
        add: AddUp = add_up,
    ) -> None:
        """`n_holders`: ranks of the world that hold each parameter; `add`: how gradients of micro-batches add up."""
        self._comm, self._dtype = comm, precision.compute.torch
        self._buckets = fill_buckets(shared_out(parameters), bucket_bytes)
        self._alone = {
            (stage, name): _Alone(p, precision.reduce.torch, add)
            for stage, named in parameters.items()
            for name, (p, axis) in named.items()
            if axis.size == 1
        }
        self._begun: set[tuple[StageKey, str]] = set()
        """Parameters of which this step has a gradient."""
        self._missing: set[tuple[StageKey, str]] = set()
        """Of `_alone`, those whose gradient of this micro-batch is still to come."""
        self._slices = [_lay_out(bucket) for bucket in self._buckets]
        self._sums = [_buffer(bucket, slices, precision.reduce.torch) for bucket, slices in self._each()]
        self._index = {id(bucket): index for index, bucket in enumerate(self._buckets)}
        self._bucket_of = {(b.stage, name): i for i, b in enumerate(self._buckets) for name in b.parameters}
        self._queue = BucketQueue(self._buckets, self._start, self._reduced, comm, overlap)
        self._early: EarlyUpdates | None = None
        self._gathering: Pending | None = None
        self._n_published = 0
        """Buckets whose masters are under way to all ranks; the last of these is not unpacked yet."""
        self.owned: dict[str, Owned] = {}
        self._copy_of: dict[nn.Parameter, Tensor] = {}
        for bucket, slices in self._each():
            for name, part in slices.items():
                self.owned[name] = _own(part, bucket, splits.get(name), n_holders[name], precision.parameters.torch)
                self._call_when_made(part.parameter, bucket.stage, name)
        for (stage, name), alone in self._alone.items():
            master = nn.Parameter(torch.empty_like(alone.parameter, dtype=precision.parameters.torch))
            shape = tuple(master.shape)
            shard = place(master.detach(), shape, (0,) * len(shape), splits.get(name))
            self.owned[name] = Owned(master, shard, n_holders[name])
            self._call_when_made(alone.parameter, stage, name)
            self._copy_of[master] = alone.parameter

    def _call_when_made(self, parameter: nn.Parameter, stage: StageKey, name: str) -> None:
        parameter.register_post_accumulate_grad_hook(lambda _: self.arrived(stage, name))

    def reduced_together(self) -> list[list[nn.Parameter]]:
        """Buckets, and last what no other rank holds."""
        groups = [[self.owned[name].master for name in bucket.parameters] for bucket in self._buckets]
        alone = [self.owned[name].master for _, name in self._alone]
        return [*groups, alone] if alone else groups

    def update_early(self, updates: EarlyUpdates) -> None:
        """See GradientSync. The updated masters set off at once."""
        self._early = updates
        self._queue.take_early(updates)

    def begin_step(self) -> None:
        """Forget the sums: the first gradient is one. Those of `_alone` are memory that forward can have."""
        self._begun.clear()
        for (_, name), alone in self._alone.items():
            alone.gradient = self.owned[name].master.grad = None

    def begin_backward(self, stage: StageKey, last: bool) -> None:
        """See GradientSync."""
        self._queue.begin_backward(stage, last)
        self._missing |= {place for place in self._alone if place[0] == stage}

    def arrived(self, stage: StageKey, name: str) -> None:
        """Add this micro-batch's gradient to the sum, in the reduce dtype, and free it."""
        if alone := self._alone.get((stage, name)):
            alone.take()
            self._missing.discard((stage, name))
            return
        add = Tensor.add_ if (stage, name) in self._begun else Tensor.copy_
        self._begun.add((stage, name))
        index = self._bucket_of[stage, name]
        buffer, part = self._sums[index], self._slices[index][name]
        assert part.parameter.grad is not None
        for rank in range(len(buffer)):
            add(part.of_rank(buffer[rank], rank), part.parameter.grad[part.rows_of(rank)])
        part.parameter.grad = None
        self._queue.arrived(stage, name)

    def made_by_hand(self, stage: StageKey) -> None:
        """They were added one by one."""

    def sums(self) -> list[Tensor]:
        """See Remade: buckets stay where they are."""
        return [alone.gradient for alone in self._alone.values() if alone.gradient is not None]

    def take_sums(self, sums: Sequence[Tensor]) -> None:
        """See Remade."""
        for alone, gradient in zip(self._alone.values(), sums, strict=True):
            alone.gradient = gradient

    def finish_step(self) -> None:
        """See GradientSync; raises RuntimeError for a gradient that never came."""
        self._queue.finish()
        if self._missing:
            raise RuntimeError(f"no gradient for {', '.join(sorted(name for _, name in self._missing))}")
        for (_, name), alone in self._alone.items():
            master = self.owned[name].master
            gradient, alone.gradient = alone.gradient, None
            assert gradient is not None
            takes_any = master.grad_dtype is None  # said by its optimizer
            master.grad = gradient if takes_any else gradient.to(master.dtype)
        if self._early and self._alone:
            self._early.update(len(self._buckets))

    def copies(self) -> dict[nn.Parameter, Tensor]:
        """See GradientSync: of what no other rank holds."""
        return self._copy_of

    @torch.no_grad()
    def publish(self, copies_are_made: bool) -> None:
        """Give every rank all rows of the masters, rounded to the compute dtype: those that have not set off early."""
        while self._n_published < len(self._buckets):
            self._publish_next()
        self._unpack()
        self._n_published = 0
        for master, copy in self._copy_of.items() if not copies_are_made else ():
            copy.copy_(master)

    @torch.no_grad()
    def _publish_next(self) -> None:
        index = self._n_published
        bucket = self._buckets[index]
        rounded = torch.zeros(1, self._sums[index].shape[1], dtype=self._dtype, device=self._sums[index].device)
        for name, part in self._slices[index].items():
            part.of_rank(rounded[0], bucket.axis.rank).copy_(self.owned[name].master)
        gathering = self._comm.start_all_gather(rounded, bucket.axis.group, CommKind.dp)
        # One bucket is unpacked while the next one travels; more at once would only take memory.
        self._unpack()
        self._gathering, self._n_published = gathering, index + 1

    def _unpack(self) -> None:
        """What was published last."""
        if self._gathering is None:
            return
        index = self._n_published - 1
        gathered, self._gathering = self._comm.wait(self._gathering), None
        # Updated early, it may lie in the side stream's memory, and be read and freed here by the stream that computes.
        # That is in time: the side stream's next work waits for a reduction that the other one starts later.
        for part in self._slices[index].values():
            for rank in range(self._buckets[index].axis.size):
                part.parameter[part.rows_of(rank)].copy_(part.of_rank(gathered[rank], rank))

    def _each(self) -> list[tuple[Bucket, dict[str, _Slice]]]:
        return list(zip(self._buckets, self._slices, strict=True))

    def _reduced(self, index: int, output: Tensor) -> None:
        """This rank's rows of a bucket's sum are the masters' gradients."""
        for name, part in self._slices[index].items():
            master = self.owned[name].master
            master.grad = part.of_rank(output.view(-1), self._buckets[index].axis.rank).to(master.dtype)
        if self._early:
            self._early.update(index)
            self._publish_next()

    def _start(self, bucket: Bucket) -> Pending:
        return self._comm.start_reduce_scatter(self._sums[self._index[id(bucket)]], bucket.axis.group, CommKind.dp)


def _lay_out(bucket: Bucket) -> dict[str, _Slice]:
    slices: dict[str, _Slice] = {}
    begin = 0
    for name, parameter in bucket.parameters.items():
        rows = -(-len(parameter) // bucket.axis.size)
        row_size = parameter.numel() // len(parameter)
        slices[name] = _Slice(parameter, begin, rows, row_size)
        begin += rows * row_size
    return slices


def _buffer(bucket: Bucket, slices: Mapping[str, _Slice], dtype: torch.dtype) -> Tensor:
    last = list(slices.values())[-1]
    device = last.parameter.device
    return torch.zeros(bucket.axis.size, last.begin + last.rows * last.row_size, dtype=dtype, device=device)


def _own(part: _Slice, bucket: Bucket, split: Split | None, n_holders: int, dtype: torch.dtype) -> Owned:
    rank, shape = bucket.axis.rank, tuple(part.parameter.shape)
    n = max(0, min(part.rows, shape[0] - rank * part.rows))
    master = nn.Parameter(torch.empty(n, *shape[1:], dtype=dtype, device=part.parameter.device))
    offset = (min(rank * part.rows, shape[0]), *(0 for _ in shape[1:]))
    return Owned(master, place(master.detach(), shape, offset, split), n_holders // bucket.axis.size)
