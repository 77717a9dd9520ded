"""Deep traces as the loop sees them: what to do before a step, and after it."""

from collections.abc import Mapping

from parallel.clock.phase_clock import PhaseClock, Ranges
from parallel.comm import Communicator
from train.trace.plan import Role, TracePlan
from train.trace.ranges import profiler_range
from train.trace.tracer import Tracer


class TracedSteps:
    """Follows the plan on one rank; `tracer` is None on ranks that do not trace, but for which steps are slower too."""

    def __init__(self, plan: TracePlan, tracer: Tracer | None, comm: Communicator, ranges: Ranges | None) -> None:
        """`ranges`: what the clock shows its ranges to while nothing is traced; None: to nobody."""
        self._plan, self._tracer, self._comm, self._ranges = plan, tracer, comm, ranges
        self._running = False
        self._show(ranges)

    def due_before(self, step: int) -> bool:
        """Whether the profiler has something to do before `step`."""
        role = self._plan.role(step)
        # Steps whose warm-up was not of this attempt are not traced.
        return role is Role.warm_up or (role is Role.traced and self._running)

    def before(self, step: int) -> None:
        """Start the profiler, or let it record. All ranks wait for each other: what that takes is no step's."""
        if self._plan.role(step) is Role.warm_up and not self._running:
            self._running = True
            if self._tracer:
                self._tracer.begin()
                self._show(profiler_range)
        elif self._tracer:
            self._tracer.step()
        self._comm.barrier()

    def slowed(self, step: int) -> bool:
        """Whether `step` was slower for being traced, or the warm-up for it."""
        return self._running and self._plan.role(step) is not Role.plain

    def traced(self, step: int) -> bool:
        """Whether `step` was the traced one: `end` comes next."""
        return self._running and self._plan.role(step) is Role.traced

    def end(self, step: int, waited_s: Mapping[str, float]) -> None:
        """Write the trace of `step`, in which the clock's brackets on this rank came to `waited_s` by kind. All ranks
        wait for those that do."""
        if self._tracer:
            self._show(self._ranges)
            self._tracer.end(step, waited_s)
        self._plan.traced(step)
        self._running = False
        self._comm.barrier()

    def _show(self, ranges: Ranges | None) -> None:
        if isinstance(self._comm.clock, PhaseClock):
            self._comm.clock.ranges = ranges
