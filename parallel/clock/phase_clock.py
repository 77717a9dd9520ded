"""Phases that tile a step without gaps, and a bracket around every wait inside them.

    compute stream   data │ forward                       │ backward              │ optimizer     │ log │ data …
    phases           ●────●───────────────────────────────●───────────────────────●───────────────●─────●
    waits                        [ep]      [ep]               [ep]  [ep]    [dp]

The end of a phase is the beginning of the next one, one mark for both, so nothing is counted twice or left out. A
bracket is around the *wait*, not around the collective: two marks, just before and just after the point where compute
must wait. What was hidden behind compute does not show; what does is exposed. Waits of a phase are taken off it.
Where a stream has nothing left to do, two marks are as far apart as the host takes for both (25 µs): a wait for what
the host knows to be over already has one mark, and no length.

No mark is waited for: those of steps past are read when the device has passed them, at the end of each step.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import Any, NamedTuple

from torch.distributed import ProcessGroup

from parallel.clock.time_source import TimeSource
from parallel.comm_kind import CommKind


class Phase(Enum):
    """What a rank is doing."""

    data_wait = "data_wait"
    """Taking the next batch: loading that was not hidden. A step begins here."""
    compute_fwd = "compute_fwd"
    """Forward of a micro-batch."""
    compute_bwd = "compute_bwd"
    """Backward of a micro-batch, and what is left of reducing gradients after the last."""
    compute_opt = "compute_opt"
    """Norm, clipping, update, balance."""
    log = "log"
    """Reading and writing metrics. Waits in here are not bracketed, nor in the next ones: they are no step's."""
    eval = "eval"
    """Held-out loss."""
    ckpt_save = "ckpt_save"
    """Saving."""
    profile = "profile"
    """Starting, stopping and reading a deep trace."""


OF_A_STEP = (Phase.data_wait, Phase.compute_fwd, Phase.compute_bwd, Phase.compute_opt)


class Waited(NamedTuple):
    """One wait in a step."""

    kind: CommKind
    operation: str
    group: ProcessGroup | None
    """None: the world."""
    phase: Phase
    seconds: float


@dataclass
class Window:
    """What a rank did over some steps."""

    steps: int = 0
    wall_s: float = 0.0
    """By the host's clock, whatever the phases' is: their sum is checked against it."""
    phase_s: dict[Phase, float] = field(default_factory=lambda: dict.fromkeys(Phase, 0.0))
    """Waits included."""
    waits: list[Waited] = field(default_factory=list)
    """Of steps, in the order waited: one order for all ranks of a group."""
    step_s: list[float] = field(default_factory=list)
    """Each step's own phases."""


class Clock:
    """One that stands still: what a Communicator has unless it is given a PhaseClock."""

    source = "none"
    """Where the times are from."""

    def __init__(self) -> None:
        self.phase = Phase.log
        """The host's."""
        self.listeners: list[Callable[[Phase], None]] = []
        """Told of each phase, once it has begun: what they take is the phase's."""

    def enter(self, phase: Phase) -> None:
        """The phase before ends, this one begins."""
        self.phase = phase
        for listener in self.listeners:
            listener(phase)

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """`phase` inside; after it the phase that was."""
        before = self.phase
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def waiting(
        self, kind: CommKind, operation: str, group: ProcessGroup | None, number: int | None = None, over: bool = False
    ) -> AbstractContextManager[None]:
        """A bracket around a wait. `number`: as `issuing` was told at the start of what is waited for; `over`: that is
        done already, on the device too."""
        return _NO_BRACKET

    def issuing(self, kind: CommKind, operation: str, number: int | None = None) -> AbstractContextManager[None]:
        """Around the start of a collective, for deep traces. `number`: tells it from all others, where one is known."""
        return _NO_BRACKET

    def end_window(self) -> Window | None:
        """The window since the last call; None if nothing was timed. Waits for the device."""
        return None


_NO_BRACKET: AbstractContextManager[None] = nullcontext()

NUMBERED = "#"
"""In the name of a range of a collective, before its number: what starts it and what waits for it bear the same."""
Ranges = Callable[[str], AbstractContextManager[None]]
"""Opens a named range in a profiler's timeline."""


class PhaseClock(Clock):
    """See above. `enter` is called from one thread; brackets from autograd's threads too, while that one waits."""

    def __init__(self, source: TimeSource, wall: Callable[[], float] = time.perf_counter) -> None:
        super().__init__()
        self._time, self._wall = source, wall
        self.source = source.name
        self.ranges: Ranges | None = None
        """Shows phases, waits and starts of collectives to a profiler, while there is one."""
        self._phase_range: AbstractContextManager[None] | None = None
        self._begin = source.mark()
        self._window_began = wall()
        self._unread: deque[_Span] = deque()
        self._brackets: deque[_Bracket] = deque()
        self._window = Window()
        self._step_s: float | None = None

    def enter(self, phase: Phase) -> None:
        """See Clock."""
        if phase is self.phase:
            return
        self._switch(phase)
        if self._phase_range is not None:
            self._phase_range.__exit__(None, None, None)
            self._phase_range = None
        if self.ranges is not None:
            self._phase_range = self.ranges(f"phase/{phase.value}")
            self._phase_range.__enter__()
        if phase is Phase.data_wait:
            self._read()
        super().enter(phase)

    def waiting(
        self, kind: CommKind, operation: str, group: ProcessGroup | None, number: int | None = None, over: bool = False
    ) -> AbstractContextManager[None]:
        """See Clock. Outside steps a wait belongs to what it is for."""
        if self.phase not in OF_A_STEP:
            return _NO_BRACKET
        return _Bracket(self, kind, operation, group, number, over)

    def issuing(self, kind: CommKind, operation: str, number: int | None = None) -> AbstractContextManager[None]:
        """See Clock."""
        return self.ranges(_range_name("comm", kind, operation, number)) if self.ranges is not None else _NO_BRACKET

    def end_window(self) -> Window:
        """See Clock. Where the device is drained already, as after reading a loss, it waits for microseconds."""
        self._switch(self.phase)
        self._time.finish(self._begin)
        for bracket in self._brackets:  # of other streams, if there are any
            self._time.finish(bracket.end)
        now = self._wall()
        self._read()
        assert not self._unread, "marks that the device has not passed, before one that it has"
        assert not self._brackets, "a wait that is not over"
        window, self._window = self._window, Window()
        if self._step_s is not None:
            window.step_s.append(self._step_s)
            self._step_s = None
        window.steps = len(window.step_s)
        window.wall_s, self._window_began = now - self._window_began, now
        return window

    def _switch(self, phase: Phase) -> None:
        mark = self._time.mark()
        self._unread.append(_Span(self.phase, self._begin, mark))
        self.phase, self._begin = phase, mark

    def _read(self) -> None:
        """Take what the device has passed."""
        while self._unread and self._time.passed(self._unread[0].end):
            span = self._unread.popleft()
            self._count(span.phase, self._time.seconds(span.begin, span.end))
            self._time.reuse([span.begin])  # its end is the next one's beginning
        while self._brackets and self._time.passed(self._brackets[0].end):
            bracket = self._brackets.popleft()
            seconds = self._time.seconds(bracket.begin, bracket.end)
            self._window.waits.append(Waited(bracket.kind, bracket.operation, bracket.group, bracket.phase, seconds))
            self._time.reuse([bracket.begin] if bracket.over else [bracket.begin, bracket.end])

    def _count(self, phase: Phase, seconds: float) -> None:
        self._window.phase_s[phase] += seconds
        if phase is Phase.data_wait:
            if self._step_s is not None:
                self._window.step_s.append(self._step_s)
            self._step_s = 0.0
        if self._step_s is not None and phase in OF_A_STEP:
            self._step_s += seconds


def _range_name(what: str, kind: CommKind, operation: str, number: int | None) -> str:
    """comm/ep/all_to_all#17, and wait/ep/all_to_all#17, or over/…, of the same collective."""
    return f"{what}/{kind.value}/{operation}" + ("" if number is None else f"{NUMBERED}{number}")


class _Span(NamedTuple):
    phase: Phase
    begin: Any
    end: Any


class _Bracket:
    """Around one wait; counted once it is over."""

    __slots__ = ("_clock", "_number", "_range", "begin", "end", "group", "kind", "operation", "over", "phase")

    def __init__(
        self,
        clock: PhaseClock,
        kind: CommKind,
        operation: str,
        group: ProcessGroup | None,
        number: int | None,
        over: bool,
    ) -> None:
        self._clock, self.kind, self.operation, self.group, self.phase = clock, kind, operation, group, clock.phase
        self._number, self.over = number, over

    def __enter__(self) -> None:
        ranges = self._clock.ranges
        what = "over" if self.over else "wait"
        self._range = ranges(_range_name(what, self.kind, self.operation, self._number)) if ranges is not None else None
        if self._range is not None:
            self._range.__enter__()
        self.begin = self._clock._time.mark()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end = self.begin if self.over else self._clock._time.mark()
        self._clock._brackets.append(self)
        if self._range is not None:
            self._range.__exit__(None, None, None)
