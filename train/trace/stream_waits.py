"""What the compute stream waited for, as a trace of kernels shows it: the sweep's side of the clock's brackets.

    compute stream   ██████ ─ gap ─────────────── ██████
    other streams        ▒▒▒▒ dp ▒▒ ▓▓▓▓ ep ▓▓▓▓▓
    host                   ↑ wait told              ↑ ep released it: between the two the stream waited, for ep
                               ↑ next kernel launched

Before that the host was late, after it is launch latency. A stream that nobody told to wait, so far as the trace says,
waits from the launch of its next kernel.

Exposed communication is not the same: it counts every moment in which a transfer runs and no kernel does, also the
microseconds between two kernels in a row and those in which the host had said nothing yet, where nobody waits for it.
And the stream waits for more than transfers: FSDP2 copies in and out of them on streams of its own.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

from train.trace.intervals import Interval, merge

LATENCY_NS = 10_000
"""A shorter gap is the device's own: kernels in a row are 1 to 5 µs apart on an H100."""


def stream_waits(
    compute: Sequence[Interval], others: Sequence[Interval], told: Mapping[str, Sequence[int]]
) -> dict[str, int]:
    """By label of `others`, what runs beside the stream of `compute`, how long that stream waited for it, ns. `told`:
    when the host told the stream to wait for what was not over, by label, in order."""
    others = sorted(others, key=lambda i: i.end_ns)
    ends = [i.end_ns for i in others]
    launched = {i.begin_ns: i.launched_ns for i in compute}
    launched_before = {i.end_ns: i.launched_ns for i in compute}
    waited: dict[str, int] = defaultdict(int)
    runs = merge(compute)
    for (_, begin), (end, _) in pairwise(runs):
        if end - begin < LATENCY_NS:
            continue
        at = bisect_left(ends, end) - 1
        if at < 0 or ends[at] <= begin:
            continue
        last = others[at]
        known = [launched.get(end), _first(told.get(last.label, ()), launched_before.get(begin), last.launched_ns)]
        since = max(begin, min((moment for moment in known if moment is not None), default=begin))
        waited[last.label] += max(0, last.end_ns - since)
    return dict(waited)


def _first(told: Sequence[int], before: int | None, started: int | None) -> int | None:
    """The first of `told` in a gap: after the launch of the kernel before it, and of what is waited for."""
    if before is None:
        return None
    at = bisect_left(told, max(before, started or before))
    return told[at] if at < len(told) else None
