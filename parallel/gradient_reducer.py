"""Data parallel by replicas: gradients summed over ranks in buckets, behind backward (Li et al. 2020, PyTorch DDP).

Ours and not torch's DistributedDataParallel for three reasons. DDP re-orders its buckets after the first step: a run
that resumes would sum in another order than one that went on, and at 3 ranks and more no longer be bit-equal to it.
Its waits are inside C++, where no clock of ours can see them. And it must be entered by its own forward, which a
schedule that walks the parts of two micro-batches never does.
"""

from collections.abc import Mapping

import torch
from torch import nn
from torch.distributed import ProcessGroup

from parallel.comm import CommKind, Communicator, Pending


class Bucket:
    """Gradients of neighbouring parameters in one flat buffer. Each `.grad` is a view into it, which autograd adds to
    in place: nothing is gathered into the buffer or scattered from it."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        first = next(iter(parameters.values()))
        self.flat = torch.zeros(sum(p.numel() for p in parameters.values()), dtype=first.dtype, device=first.device)
        self.names = frozenset(parameters)
        self.missing: set[str] = set()
        """Parameters whose gradient of this micro-batch is still to come."""
        views = self.flat.split([p.numel() for p in parameters.values()])
        for parameter, view in zip(parameters.values(), views, strict=True):
            parameter.grad = view.view_as(parameter)


class GradientReducer:
    """Sums every gradient over `group` once per step.

        compute   B(layer 9)   B(layer 8)      B(layer 7)      …     wait   clip, optimizer
        comm                   all-reduce 9    all-reduce 8    …   |
                               behind backward                     what is left is exposed

    A bucket starts when its last gradient is there *and* the bucket before it has started: the order of collectives
    is the same on every rank whatever order autograd takes. With `overlap` off all of them start after backward.

    Args:
        parameters: by name, of one dtype and device, in the order of forward.
        group: the ranks to sum over.
        comm: issues the all-reduces.
        bucket_bytes: a bucket is closed once it holds this much.
        overlap: whether to start in backward.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        group: ProcessGroup,
        comm: Communicator,
        bucket_bytes: int,
        overlap: bool,
    ) -> None:
        self._group, self._comm, self._overlap = group, comm, overlap
        self._buckets: list[Bucket] = []
        self._pending: list[Pending] = []
        self._reducing = False
        for members in _fill_buckets(parameters, bucket_bytes):
            bucket = Bucket(members)
            self._buckets.append(bucket)
            for name, parameter in members.items():
                parameter.register_post_accumulate_grad_hook(lambda _, b=bucket, n=name: self._arrived(b, n))

    def begin_step(self) -> None:
        """Zero the gradients in place: they stay views into the buckets."""
        for bucket in self._buckets:
            bucket.flat.zero_()

    def begin_micro_batch(self, last: bool) -> None:
        """Gradients add up locally until the last micro-batch's backward, which sends them off."""
        self._reducing = last
        for bucket in self._buckets:
            bucket.missing = set(bucket.names)

    def finish_step(self) -> None:
        """Start what has not started, and wait for all.

        Raises:
            RuntimeError: if backward reached a parameter never: its zeros would be taken for a gradient.
        """
        missing = sorted(name for bucket in self._buckets for name in bucket.missing)
        if missing:
            raise RuntimeError(f"no gradient for {', '.join(missing)}")
        while len(self._pending) < len(self._buckets):
            self._start_next()
        for pending in self._pending:
            self._comm.wait(pending)
        self._pending.clear()
        self._reducing = False

    def _arrived(self, bucket: Bucket, name: str) -> None:
        bucket.missing.discard(name)
        if self._reducing and self._overlap:
            while len(self._pending) < len(self._buckets) and not self._buckets[len(self._pending)].missing:
                self._start_next()

    def _start_next(self) -> None:
        flat = self._buckets[len(self._pending)].flat
        self._pending.append(self._comm.start_all_reduce(flat, self._group, CommKind.dp))


def _fill_buckets(parameters: Mapping[str, nn.Parameter], bucket_bytes: int) -> list[dict[str, nn.Parameter]]:
    """Last parameters first: backward reaches them first."""
    buckets: list[dict[str, nn.Parameter]] = [{}]
    filled = 0
    for name, parameter in reversed(list(parameters.items())):
        if buckets[-1] and filled >= bucket_bytes:
            buckets.append({})
            filled = 0
        buckets[-1][name] = parameter
        filled += parameter.numel() * parameter.element_size()
    return buckets
