"""What a step ran between the start of each collective and the wait for it: the proof of overlap that needs no clock.

    start dp #1 │ mm  mm  mm │ start dp #2 │ mm  addmm │ wait dp #1 │ wait dp #2
                  └─────────── between #1: 5 ──────────┘              between #2: 2

Of a step on one rank, as its trace shows the host. A collective starts where its `comm/KIND/OPERATION#NUMBER` range
ends, and is waited for where the range `wait/…` of the same number begins, or `over/…`, if it was done by then. Between
the two lie those operators of Trace.work (matrix products, attention, AdamW's update) that began and ended there, on
whatever thread. Copies, permutations and element-wise operators do not count: hardly any two collectives are without
one between them, and it hides next to nothing.

Whoever waits at once has nothing between, however fast the wire; what has something between it is hidden as far as that
lasts, and how far that is only a GPU's kernels can say. On a GPU the host's order is that of the streams: an operator
is where it was launched.

FSDP2 on gloo returns when it is done: such a collective lies around its own wait, and what can be seen is when it was
issued.
"""

from bisect import bisect_left
from dataclasses import dataclass

from parallel.clock.phase_clock import NUMBERED
from train.trace.chrome import UPDATE, Range, Trace


@dataclass(frozen=True)
class Begun:
    """One collective of a step."""

    kind: str
    operation: str
    after: int
    """Operators of Trace.work that had begun when it was issued."""
    between: int | None
    """Of these, how many ran between its start and the wait for it; None where the trace does not tell: it was waited
    for as it was issued (FSDP2 on gloo), or elsewhere than in the step, or by torch on a GPU."""


def issue_order(trace: Trace) -> list[Begun]:
    """The collectives of the traced step, in the order in which they were issued; those outside its phases are none."""
    if trace.step is None:
        return []
    first, last = trace.step
    waits = {
        _said(each): each for each in trace.ranges if each.name.startswith(("wait/", "over/")) and NUMBERED in each.name
    }
    work = sorted(trace.work, key=lambda each: each.begin_ns)
    begins = [each.begin_ns for each in work]
    starts = [each for each in trace.ranges if each.name.startswith("comm/") and first <= each.begin_ns < last]
    return [
        _begun(start, waits.get(_said(start)), work, begins) for start in sorted(starts, key=lambda each: each.begin_ns)
    ]


def updates_behind_backward(trace: Trace) -> tuple[int, int]:
    """How many of the step's updates of weights had begun before its last matrix product did, and how many there are.

    Not before the phase of backward ended: what is left of reducing gradients is in there, and hides nothing.
    """
    last = max((each.begin_ns for each in trace.work if not UPDATE.match(each.name)), default=0)
    updates = [each for each in trace.work if UPDATE.match(each.name)]
    return sum(each.begin_ns < last for each in updates), len(updates)


def _begun(start: Range, wait: Range | None, work: list[Range], begins: list[int]) -> Begun:
    _, kind, operation = start.name.split("/", 2)
    between = None
    if wait is not None:
        there = work[bisect_left(begins, start.end_ns) : bisect_left(begins, wait.begin_ns)]
        between = sum(each.end_ns <= wait.begin_ns for each in there)
    return Begun(kind, operation.partition(NUMBERED)[0], bisect_left(begins, start.begin_ns), between)


def _said(each: Range) -> str:
    """Of comm/dp/all_reduce#17 and wait/dp/all_reduce#17: dp/all_reduce#17."""
    return each.name.partition("/")[2]
