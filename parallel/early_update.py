"""The optimizer behind backward: the weights of a bucket are updated as soon as their gradient is reduced.

    compute   B(layer 9)   B(layer 8)   B(layer 7)             B(layer 6)             …   │ the last bucket   norm
    comm                   reduce 9     reduce 8    (gather 9) reduce 7    (gather 8) …   │
    side                                update 9 ─────────────→update 8 ─────────────→…   │ waited for
                                        behind B(7)            behind B(6)

Nobody needs a bucket's weights any more: each of its gradients is there only once all uses of that weight have gone
backward, and the last micro-batch is the last in every schedule. The next forward comes after `join`. With ZeRO-1 the
updated weights are gathered from there too, each bucket behind the backward of what follows.

Nothing else may have to be known before: neither a norm to clip by, nor whether another bucket's gradient is finite. A
step that is not finite has then moved weights when that is found out, so the job must end there (its checkpoint is of
the step before), not leave the update out and go on: conf/schema.py refuses the rest.

On CUDA updates are enqueued on a stream of their own, which waits for the reduction where compute does not. On CPU the
thread that runs backward waits itself, one bucket late: when the reduction of the next one has begun. Under FSDP2 the
parts that it reduces at a time are the buckets, and an update follows its reduction.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.optim import Optimizer

from parallel.comm import Communicator


class EarlyUpdates:
    """One optimizer for each bucket, in the order in which they are reduced."""

    def __init__(self, optimizers: Sequence[Optimizer], comm: Communicator, device: torch.device) -> None:
        self._optimizers, self._comm = optimizers, comm
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Where updates do not hold up compute."""
        with self._comm.aside(self._stream):
            yield

    def update_aside(self, index: int) -> None:
        """`update`, after what the current stream, another one than that of compute, has done so far."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with self.aside():
            self.update(index)

    def update(self, index: int) -> None:
        """Move the masters of a bucket, whose gradients are the global ones."""
        self._optimizers[index].step()

    def join(self) -> None:
        """What is computed from here on sees all updates."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
