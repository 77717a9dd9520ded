"""Data parallel by replicas: gradients summed over ranks in buckets, behind backward (Li et al. 2020, PyTorch DDP).

Ours and not torch's DistributedDataParallel for three reasons. DDP re-orders its buckets after the first step: a run
that resumes would sum in another order than one that went on, and at 3 ranks and more no longer be bit-equal to it.
Its waits are inside C++, where no clock of ours can see them. And it must be entered by its own forward, which a
schedule that walks the parts of two micro-batches never does.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from parallel.buckets import Bucket, BucketQueue, Reduced, fill_buckets, shared_out
from parallel.comm import Communicator, Pending
from parallel.comm_kind import CommKind
from parallel.early_update import EarlyUpdates
from parallel.pipeline.action import StageKey


class GradientReducer:
    """Sums every gradient over its ranks once per step (parallel/buckets.py draws when).

    A bucket's gradients lie in one flat buffer. Each `.grad` is a view into it, which autograd adds to in place: so
    nothing is gathered into the buffer or scattered from it.
    """

    def __init__(self, parameters: Reduced, comm: Communicator, bucket_bytes: int, overlap: bool) -> None:
        """`overlap`: whether to start in backward."""
        self._comm = comm
        self._alone = [p for named in parameters.values() for p, axis in named.values() if axis.size == 1]
        self._buckets = fill_buckets(shared_out(parameters), bucket_bytes)
        self._flat = {id(bucket): _allocate(bucket) for bucket in self._buckets}
        self._queue = BucketQueue(self._buckets, self._start, self._reduced, comm, overlap)
        self._early: EarlyUpdates | None = None
        for bucket in self._buckets:
            for name, parameter in bucket.parameters.items():
                parameter.register_post_accumulate_grad_hook(lambda _, s=bucket.stage, n=name: self.arrived(s, n))

    def reduced_together(self) -> list[list[nn.Parameter]]:
        """Buckets, and last what no other rank holds: nothing travels behind which it could be updated."""
        groups = [list(bucket.parameters.values()) for bucket in self._buckets]
        return [*groups, self._alone] if self._alone else groups

    def update_early(self, updates: EarlyUpdates) -> None:
        """See GradientSync."""
        self._early = updates
        self._queue.take_early(updates)

    def begin_step(self) -> None:
        """Zero the gradients; those in buckets in place, for they stay views."""
        for flat in self._flat.values():
            flat.zero_()
        for parameter in self._alone:
            parameter.grad = None

    def begin_backward(self, stage: StageKey, last: bool) -> None:
        """See GradientSync."""
        self._queue.begin_backward(stage, last)

    def arrived(self, stage: StageKey, name: str) -> None:
        """See GradientSync."""
        self._queue.arrived(stage, name)

    def made_by_hand(self, stage: StageKey) -> None:
        """They were counted one by one."""

    def sums(self) -> list[Tensor]:
        """See Remade: buckets stay where they are."""
        return [parameter.grad for parameter in self._alone if parameter.grad is not None]

    def take_sums(self, sums: Sequence[Tensor]) -> None:
        """See Remade."""
        for parameter, gradient in zip(self._alone, sums, strict=True):
            parameter.grad = gradient

    def finish_step(self) -> None:
        """See GradientSync; raises RuntimeError for a gradient that never came."""
        self._queue.finish()
        if self._early and self._alone:
            self._early.update(len(self._buckets))

    def copies(self) -> dict[nn.Parameter, Tensor]:
        """None."""
        return {}

    def publish(self, copies_are_made: bool) -> None:
        """The masters are the parameters."""

    def _reduced(self, index: int, _: Tensor) -> None:
        """In place, where the gradients look."""
        if self._early:
            self._early.update(index)

    def _start(self, bucket: Bucket) -> Pending:
        return self._comm.start_all_reduce(self._flat[id(bucket)], bucket.axis.group, CommKind.dp)


def _allocate(bucket: Bucket) -> Tensor:
    """The bucket's buffer; its parameters' gradients point into it."""
    parameters: list[nn.Parameter] = list(bucket.parameters.values())
    sizes = [parameter.numel() for parameter in parameters]
    flat = torch.zeros(sum(sizes), dtype=parameters[0].dtype, device=parameters[0].device)
    for parameter, view in zip(parameters, flat.split(sizes), strict=True):
        parameter.grad = view.view_as(parameter)
    return flat
