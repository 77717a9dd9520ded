"""Tokens per second, MFU and step time over the steps between two logged ones."""

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ModelWork:
    """What a token costs and what the machine could do."""

    flops_per_token: int
    """Forward and backward, causal attention."""
    flops_per_token_palm: int
    """The same without the causal discount."""
    peak_tflops: float
    """Of one rank's device."""
    world_size: int


class Throughput:
    """A stopwatch over windows of steps. The time of evaluations and saves is left out of them (`paused`).

    A window must begin and end where the device is drained (the loop reads a loss there): then host time is true time,
    and no step in between is synchronised for its sake.
    """

    def __init__(self, work: ModelWork, clock: Callable[[], float] = time.perf_counter) -> None:
        self._work, self._clock = work, clock
        self._begin = clock()
        self._left_out = 0.0
        self._steps = 0
        self._tokens = 0

    def count(self, tokens: int) -> None:
        """A step of `tokens` over all ranks was issued."""
        self._steps += 1
        self._tokens += tokens

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave this time out of the window."""
        start = self._clock()
        try:
            yield
        finally:
            self._left_out += self._clock() - start

    @property
    def tokens(self) -> int:
        """Of the window so far, over all ranks."""
        return self._tokens

    @property
    def seconds(self) -> float:
        """Of the window so far."""
        return self._clock() - self._begin - self._left_out

    def end_window(self) -> dict[str, float]:
        """perf/* of the window that ends now, nothing if it has no step; the next one begins."""
        now = self._clock()
        seconds = now - self._begin - self._left_out
        if not self._steps:
            self._begin, self._left_out = now, 0.0
            return {}
        tokens_per_sec = self._tokens / seconds
        work = self._work
        per_rank = tokens_per_sec / work.world_size
        tflops = per_rank * work.flops_per_token / 1e12
        row = {
            "perf/step_time_s": seconds / self._steps,
            "perf/tokens_per_sec": tokens_per_sec,
            "perf/tokens_per_sec_per_gpu": per_rank,
            "perf/tflops_per_gpu": tflops,
            "perf/mfu": tflops / work.peak_tflops,
            "perf/mfu_palm": per_rank * work.flops_per_token_palm / 1e12 / work.peak_tflops,
        }
        self._begin, self._left_out, self._steps, self._tokens = now, 0.0, 0, 0
        return row


def peak_memory_gib(device: torch.device) -> float:
    """Most memory this rank ever held: allocated tensors on a GPU, resident pages of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB
