"""Which samples each data-parallel rank takes, as batches on its device.

M micro-batches of a step, B sequences of a micro-batch, S tokens of a sample (sequence_length + 1),
N samples of a rank, M·B.
"""

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from train.data.prefetch import Prefetcher
from train.data.source import SampleStream


class BatchLoader:
    """Endless iterator over optimizer steps, each giving one rank's share of the global batch.

    Step s trains on stream positions [s·G, (s+1)·G) for a global batch of G sequences; micro-batch m of rank r takes
    s·G + m·(dp_size·B) + r·B + i for i < B. So every layout trains on the same global batch at the same step, and so
    does a run that resumes there: the position is all of the loader's state.
    """

    def __init__(
        self,
        *,
        stream: SampleStream,
        global_batch_size: int,
        micro_batch_size: int,
        dp_rank: int,
        dp_size: int,
        start_step: int,
        prefetch: int,
        device: torch.device,
    ) -> None:
        """Begin at `start_step`, with `prefetch` batches prepared ahead in a thread (0: made when asked for).

        Sizes are in sequences. Raises ValueError if they do not divide, or a number is out of its range.
        """
        _check_rank(micro_batch_size, dp_rank, dp_size)
        if global_batch_size < 1 or global_batch_size % (micro_batch_size * dp_size):
            raise ValueError(
                f"global_batch_size {global_batch_size} is not a positive multiple of "
                f"micro_batch_size × data-parallel ranks = {micro_batch_size} × {dp_size}"
            )
        if start_step < 0 or prefetch < 0:
            raise ValueError(f"start_step {start_step} and prefetch {prefetch} must not be negative")
        self.stream = stream
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.dp_rank = dp_rank
        self.dp_size = dp_size
        self.device = device
        self._step = start_step
        self._closed = False
        self._prefetch = prefetch
        self._prefetcher = Prefetcher(self._read, prefetch) if prefetch else None

    def __iter__(self) -> Iterator[Tensor]:
        """Itself."""
        return self

    def __next__(self) -> Tensor:
        """The next step's tokens_MBS, int64 on the device.

        Raises what reading a sample raised, at the step that needed it, and never skips that step; RuntimeError once
        closed.
        """
        if self._closed:
            raise RuntimeError("the loader is closed")
        tokens_MBS = self._prefetcher.get() if self._prefetcher else self._read()
        return _to_device(tokens_MBS, self.device)

    def __enter__(self) -> Self:
        """Itself; leaving closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def go_to(self, step: int) -> None:
        """Give the batch of `step` next; what was prepared of others is dropped."""
        if self._prefetcher:
            self._prefetcher.close()
        self._step = step
        self._prefetcher = Prefetcher(self._read, self._prefetch) if self._prefetch else None

    def close(self) -> None:
        """Stop the thread, if there is one, and drop what it prepared. May be called again."""
        self._closed = True
        if self._prefetcher:
            self._prefetcher.close()

    def _read(self) -> Tensor:
        """The next step's tokens_MBS on the host; called from one thread only."""
        stride = self.dp_size * self.micro_batch_size
        first = self._step * self.global_batch_size + self.dp_rank * self.micro_batch_size
        positions = (
            first + m * stride + i
            for m in range(self.global_batch_size // stride)
            for i in range(self.micro_batch_size)
        )
        tokens_NS = _stack(self.stream, positions, self.device)
        self._step += 1  # only now: a read that fails leaves the step to be read again
        return tokens_NS.unflatten(0, (-1, self.micro_batch_size))


def heldout_batches(
    stream: SampleStream, count: int, micro_batch_size: int, dp_rank: int, dp_size: int, device: torch.device
) -> Iterator[Tensor]:
    """This rank's share of the first `count` samples, in order, as int64 tokens_BS [micro_batch_size, S] on the device.

    Every rank gets as many batches of the same shape, since a rank that runs one forward fewer leaves the others
    waiting in FSDP's collectives. Raises ValueError, at the call, if `count` is not a positive multiple of
    micro_batch_size × dp_size.
    """
    _check_rank(micro_batch_size, dp_rank, dp_size)
    stride = micro_batch_size * dp_size
    if count < 1 or count % stride:
        raise ValueError(
            f"{count} held-out samples are not a positive multiple of "
            f"micro_batch_size × data-parallel ranks = {micro_batch_size} × {dp_size}"
        )
    starts = range(dp_rank * micro_batch_size, count, stride)
    return (_to_device(_stack(stream, range(start, start + micro_batch_size), device), device) for start in starts)


def _check_rank(micro_batch_size: int, dp_rank: int, dp_size: int) -> None:
    if micro_batch_size < 1:
        raise ValueError(f"micro_batch_size {micro_batch_size} must be at least 1")
    if not 0 <= dp_rank < dp_size:
        raise ValueError(f"data-parallel rank {dp_rank} is not one of {dp_size}")


def _stack(stream: SampleStream, positions: Iterable[int], device: torch.device) -> Tensor:
    """Samples as int64 tokens_NS on the host, page-locked if they are to go to a GPU."""
    tokens_NS = torch.from_numpy(np.stack([stream[position] for position in positions]))
    return tokens_NS.pin_memory() if device.type == "cuda" else tokens_NS


def _to_device(tokens: Tensor, device: torch.device) -> Tensor:
    # From pinned memory this only enqueues the copy. The caller may drop the host tensor at once: torch's caching host
    # allocator records the stream that reads a pinned block, and hands the block out again only after that copy.
    return tokens.to(device, non_blocking=True)
