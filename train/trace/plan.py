"""Which steps are traced deeply: every so many, when somebody asks by a file, or after a step that was slow.

    step 98        99                   100              101
         │ row     │ profiler starts    │ records        │ row, profiler stops, trace is written
                     warm-up              traced

All ranks follow one plan, whether they trace or not: the traced steps are slower for all of them, and are booked apart.
"""

import statistics
from collections import deque
from enum import Enum
from pathlib import Path

from train.metrics.config import MeasureConfig

TRACE_FILE = "TRACE"
"""In the run's folder: asks for a trace soon, whatever the limit, and is taken away when it is granted."""
REMEMBERED, ENOUGH = 200, 10
"""Steps whose times are compared with; how many there must be before one can be called slow."""


class Role(Enum):
    """Of a step in the plan."""

    plain = "plain"
    warm_up = "warm-up"
    traced = "traced"


class TracePlan:
    """See above."""

    def __init__(self, config: MeasureConfig, steps: range, run_folder: Path, n_settling: int = 1) -> None:
        """`steps`: of this attempt. The first `n_settling` are neither traced nor a warm-up."""
        self._config, self._file = config, run_folder / TRACE_FILE
        self._may_be_traced = steps[n_settling + 1 :]
        self._asked: int | None = None
        self._left = config.trace_limit
        self._step_s: deque[float] = deque(maxlen=REMEMBERED)

    def role(self, step: int) -> Role:
        """What `step` is."""
        if self._is_traced(step):
            return Role.traced
        return Role.warm_up if self._is_traced(step + 1) else Role.plain

    def traced(self, step: int) -> None:
        """`step` was traced: one trace less is left."""
        self._left -= 1
        if step == self._asked:
            self._asked = None

    def usual_step_s(self) -> float | None:
        """This rank's median step; None before the first."""
        return statistics.median(self._step_s) if self._step_s else None

    def wants(self, step_s: list[float], rank: int) -> bool:
        """Whether this rank asks for a trace, having done steps of these seconds. Remembers them; rank 0 looks for the
        file."""
        slow = self._config.trace_slow and self._left > 0 and any(seconds > self._slow_s() for seconds in step_s)
        self._step_s.extend(step_s)
        return slow or (rank == 0 and self._config.clock and self._file.exists())

    def ask(self, step: int, rank: int) -> None:
        """All ranks heard, after `step`, that one wants a trace: the step after the next one is traced. One that is
        under way, or comes next, does for it; where none may be traced then, the file stays."""
        if self._asked is not None or Role.traced in (self.role(step), self.role(step + 1)):
            granted = True
        else:
            granted = step + 2 in self._may_be_traced
            self._asked = step + 2 if granted else None
        if granted and rank == 0:
            self._file.unlink(missing_ok=True)

    def _is_traced(self, step: int) -> bool:
        every = self._config.trace_every
        periodic = self._left > 0 and every > 0 and step % every == 0
        return step in self._may_be_traced and (step == self._asked or periodic)

    def _slow_s(self) -> float:
        """The median step and three median deviations."""
        if len(self._step_s) < ENOUGH:
            return float("inf")
        median = statistics.median(self._step_s)
        return median + 3 * statistics.median(abs(seconds - median) for seconds in self._step_s)
