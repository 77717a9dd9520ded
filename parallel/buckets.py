"""Gradients in buckets, reduced behind backward, in one order on all ranks."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from parallel.comm import Communicator, Pending
from parallel.early_update import EarlyUpdates
from parallel.mesh import Axis
from parallel.pipeline.action import StageKey

Reduced = Mapping[StageKey, Mapping[str, tuple[nn.Parameter, Axis]]]
"""Parameters by stage and name, in the order of forward, each with the ranks that its gradient is summed over."""


@dataclass
class Bucket:
    """Neighbouring parameters of a stage, reduced over the same ranks in one collective."""

    stage: StageKey
    axis: Axis
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    """Parameters whose gradient of this micro-batch is still to come."""


def shared_out(parameters: Reduced) -> Reduced:
    """Those that several ranks hold."""
    return {
        stage: {name: (p, axis) for name, (p, axis) in named.items() if axis.size > 1}
        for stage, named in parameters.items()
    }


def fill_buckets(parameters: Reduced, bucket_bytes: int) -> list[Bucket]:
    """Last stages and last parameters first: backward reaches them first. A bucket is of one group of ranks and dtype.

    See `divide_into_buckets`.
    """
    buckets: list[Bucket] = []
    # By stage number before chain, so that two ranks that hold the same stages in two chains agree on the order.
    for stage in sorted(parameters, key=lambda key: (key.stage, key.chain), reverse=True):
        named = list(parameters[stage].items())[::-1]
        sizes = [((axis.group, p.dtype), p.numel() * p.element_size()) for _, (p, axis) in named]
        for members in divide_into_buckets(sizes, bucket_bytes):
            _, (_, axis) = named[members[0]]
            buckets.append(Bucket(stage, axis, {named[i][0]: named[i][1][0] for i in members}))
    return buckets


def divide_into_buckets(sizes: Iterable[tuple[Hashable, int]], bucket_bytes: int) -> list[list[int]]:
    """Which of `sizes`, each (what its bucket must have in common, bytes), are in which bucket, by their places. One
    bucket is open for each thing in common, and closed once it holds `bucket_bytes`."""
    buckets: list[list[int]] = []
    filling: dict[Hashable, tuple[list[int], int]] = {}
    for place, (common, n_bytes) in enumerate(sizes):
        members, held = filling.get(common, ([], bucket_bytes))
        if held >= bucket_bytes:
            members, held = [], 0
            buckets.append(members)
        members.append(place)
        filling[common] = (members, held + n_bytes)
    return buckets


class BucketQueue:
    """Starts each bucket's collective when its last gradient is there *and* the bucket before it has started.

        compute   B(layer 9)   B(layer 8)      B(layer 7)      …     wait   clip, optimizer
        comm                   bucket of 9     bucket of 8     …   |
                               behind backward                     what is left is exposed

    So the order of collectives is the same on every rank, whatever order autograd takes. With `overlap` off all of them
    start after backward. With early updates (parallel/early_update.py) each is waited for when the next one has begun.
    """

    def __init__(
        self,
        buckets: Sequence[Bucket],
        start: Callable[[Bucket], Pending],
        reduced: Callable[[int, torch.Tensor], None],
        comm: Communicator,
        overlap: bool,
    ) -> None:
        """`reduced` is told the number of a bucket and what its collective put out, in the order of buckets."""
        self._buckets, self._start, self._reduced = buckets, start, reduced
        self._comm, self._overlap = comm, overlap
        self._early: EarlyUpdates | None = None
        self._n_taken = 0
        self._bucket_of = {(b.stage, name): b for b in buckets for name in b.parameters}
        self._pending: list[Pending] = []
        self._reducing: set[StageKey] = set()

    def take_early(self, updates: EarlyUpdates) -> None:
        """From now on, take what is reduced behind backward."""
        self._early = updates

    def begin_backward(self, stage: StageKey, last: bool) -> None:
        """Gradients add up locally until the last micro-batch's backward, which sends them off."""
        if last:
            self._reducing.add(stage)
        for bucket in self._buckets:
            if bucket.stage == stage:
                bucket.missing = set(bucket.parameters)

    def arrived(self, stage: StageKey, name: str) -> None:
        """A parameter's gradient of this micro-batch is there."""
        bucket = self._bucket_of.get((stage, name))
        if bucket is None:
            return
        bucket.missing.discard(name)
        while self._overlap and len(self._pending) < len(self._buckets):
            following = self._buckets[len(self._pending)]
            if following.missing or following.stage not in self._reducing:
                break
            self._pending.append(self._start(following))
            if self._early:
                with self._early.aside():
                    self._take(len(self._pending) - 1)

    def finish(self) -> None:
        """Start what has not started, and wait for all.

        Raises:
            RuntimeError: if backward reached a parameter never: its zeros would be taken for a gradient.
        """
        missing = sorted(name for bucket in self._buckets for name in bucket.missing)
        if missing:
            raise RuntimeError(f"no gradient for {', '.join(missing)}")
        for bucket in self._buckets[len(self._pending) :]:
            self._pending.append(self._start(bucket))
        self._take(len(self._pending))
        if self._early:
            self._early.join()
        self._pending.clear()
        self._reducing.clear()
        self._n_taken = 0

    def _take(self, end: int) -> None:
        """Wait for the buckets before number `end`."""
        for index in range(self._n_taken, end):
            self._reduced(index, self._comm.wait(self._pending[index]))
        self._n_taken = max(self._n_taken, end)
