"""Two clocks with one face: the host's nanoseconds, and events on a GPU's compute stream.

On a GPU the host only enqueues: what it times is not what the device does. An event is enqueued like any kernel and
takes the device's time when its turn comes, so the distance of two events is what the stream did between them, gaps and
waits included; nobody waits to learn it. Reading it later costs a look at an event that has long passed.
"""

import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch


class TimeSource(Protocol):
    """Takes moments and tells their distance."""

    name: str
    """As reports show it."""

    def mark(self) -> Any:
        """This moment of the compute stream (CPU: of this thread)."""

    def passed(self, mark: Any) -> bool:
        """Whether the device has come to `mark`: only then may it be read."""

    def finish(self, mark: Any) -> None:
        """Wait until the device has come to `mark`."""

    def seconds(self, begin: Any, end: Any) -> float:
        """From one passed mark to another."""

    def reuse(self, marks: Sequence[Any]) -> None:
        """These will not be read again."""


class HostTime:
    """See TimeSource. A mark is `perf_counter_ns`: on CPU what is called is done when it returns."""

    name = "host clock"

    def mark(self) -> int:
        """See TimeSource."""
        return time.perf_counter_ns()

    def passed(self, mark: int) -> bool:
        """See TimeSource: always."""
        return True

    def finish(self, mark: int) -> None:
        """See TimeSource: nothing to wait for."""

    def seconds(self, begin: int, end: int) -> float:
        """See TimeSource."""
        return (end - begin) * 1e-9

    def reuse(self, marks: Sequence[int]) -> None:
        """See TimeSource: numbers need not be."""


class CudaTime:
    """See TimeSource. A mark is an event (resolution about 0.5 µs), recorded on the stream that is current: autograd
    takes that along into its own threads."""

    name = "CUDA events"

    def __init__(self) -> None:
        self._pool: list[torch.cuda.Event] = []

    def mark(self) -> torch.cuda.Event:
        """See TimeSource."""
        event = self._pool.pop() if self._pool else torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def passed(self, mark: torch.cuda.Event) -> bool:
        """See TimeSource."""
        return mark.query()

    def finish(self, mark: torch.cuda.Event) -> None:
        """See TimeSource."""
        mark.synchronize()

    def seconds(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """See TimeSource."""
        return begin.elapsed_time(end) * 1e-3

    def reuse(self, marks: Sequence[torch.cuda.Event]) -> None:
        """See TimeSource: to be recorded anew, for making an event costs ten times as much as recording one."""
        self._pool.extend(marks)


def time_source(device: torch.device) -> TimeSource:
    """The clock of what computes on `device`."""
    return CudaTime() if device.type == "cuda" else HostTime()
