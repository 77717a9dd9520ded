"""Tiles of one rank's attempt: each ends now and begins where the one before ended, so none of its time is left out."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from parallel.clock.phase_clock import Phase, Window
from train.ledger.events import now_ns
from train.ledger.ledger import Ledger
from train.metrics.breakdown import IN_STEPS

UNDIVIDED = "step"
"""The bucket of steps that no clock divided."""


class Tiles:
    """Writes `tile` events (see events.py)."""

    def __init__(self, ledger: Ledger, begin: int) -> None:
        """The first tile begins at `begin`, ns."""
        self._ledger, self._begin = ledger, begin
        self._last_step = 0
        self._logged_ns = 0
        """Of Phase.log, written since the last tile of steps: the clock's window there still has it."""

    def end(self, bucket: str) -> None:
        """A tile ends that is all of one `bucket`."""
        begin, now = self._begin, now_ns()
        self._begin = now
        self._ledger.write("tile", t=now, begin=begin, buckets={bucket: now - begin})

    @contextmanager
    def apart(self, phase: Phase) -> Iterator[None]:
        """What is inside is a tile, whatever ends it; what was before it, since the last one, is the log's."""
        before = self._begin
        self.end(Phase.log.value)
        self._logged_ns += self._begin - before
        try:
            yield
        finally:
            self.end(phase.value)

    def start_at(self, step: int) -> None:
        """The next step is the one after `step`; the clock begins a window there."""
        self._last_step, self._logged_ns = step, 0

    def end_steps(self, last: int, now: int, window: Window | None, seconds: Mapping[str, float]) -> None:
        """A tile of the steps up to `last` ended at `now`, as did the clock's `window`, where the device was drained.

        `seconds`: the window's by bucket (metrics/step_time.py). No window: no clock divided the steps.
        """
        begin, first = self._begin, self._last_step + 1
        self._begin, self._last_step = now, last
        if window:
            in_tile = {name: seconds[name] for name in IN_STEPS}
            # Tiles of their own have the rest: all of evaluations, saves and traces but what traced steps took above
            # the usual, and the log's time before those.
            in_tile["profile"] = seconds["profile"] - window.phase_s[Phase.profile]
            in_tile["log"] = max(0.0, window.phase_s[Phase.log] - self._logged_ns / 1e9)
            buckets = {name: ns for name, s in in_tile.items() if (ns := round(s * 1e9))}
            step_ns = [round(s * 1e9) for s in window.step_s]
        else:
            buckets = {UNDIVIDED: now - begin}
            step_ns = [(now - begin) // (last - first + 1)] * (last - first + 1)
        self._logged_ns = 0
        self._ledger.write("tile", t=now, begin=begin, buckets=buckets, first=first, last=last, step_ns=step_ns)
