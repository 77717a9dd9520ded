"""When an exchange starts, so that it waits for its own rows and for nothing that was enqueued behind them.

    compute   attention(F) ● │ experts(B) ──────────────── │ experts(F)
    lane                   └→ counts → host │ rows ──────→ │

c10d lets a collective wait for the stream that is current when it starts. Were that the compute stream, rows would wait
for experts(B), another micro-batch's, which the host has enqueued while the counts came. On a stream of their own, the
lane, they wait for the event alone that stands behind them. Without a lane they start at once: on CPU what is enqueued
is done.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from parallel.comm import Communicator, Pending


class Departure:
    """A tensor that is ready to travel, and then on its way."""

    def __init__(
        self,
        x: Tensor,
        start: Callable[[Tensor], Pending],
        prepare: Callable[[], None] | None,
        comm: Communicator,
        lane: torch.cuda.Stream | None,
    ) -> None:
        """`prepare`: begins what `start` would have to wait for; called on the lane, if there is one. The lane takes
        what is asked of it in order: with nothing to prepare it is left to those that start before this."""
        # Made contiguous by the compute stream: a copy that the lane makes would read what the allocator has given
        # away. c10d itself keeps what it sends until the wait.
        self._x: Tensor | None = x.contiguous()
        self._start, self._comm, self._lane = start, comm, lane
        self._pending: Pending | None = None
        if lane is None:
            self.start()
            return
        self._ready = torch.cuda.current_stream(x.device).record_event()
        if prepare is not None:
            with torch.cuda.stream(lane):
                lane.wait_event(self._ready)
                prepare()

    def start(self) -> None:
        """Send it off, unless it is under way. The host may wait for counts, not for compute."""
        x, self._x = self._x, None
        if x is None:
            return
        if self._lane is None:
            self._pending = self._start(x)
            return
        compute = torch.cuda.current_stream(x.device)
        with torch.cuda.stream(self._lane):
            self._lane.wait_event(self._ready)
            self._pending = self._start(x)
        # Its output lies in the lane's memory, and compute reads it: not to be given away before that is over.
        self._pending.output.record_stream(compute)

    def arrive(self) -> Tensor:
        """Hold the compute stream (on CPU: this thread) until it is there. Once."""
        self.start()
        pending, self._pending = self._pending, None
        assert pending is not None, "it arrives once"
        return self._comm.wait(pending)
