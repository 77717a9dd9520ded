"""Intervals of time, and where one set of them is, or is not, inside another."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Merged = list[tuple[int, int]]
"""Disjoint [begin, end) in order, ns, none touching the next."""


@dataclass(frozen=True)
class Interval:
    """Something ran from `begin_ns` to `end_ns`, whole nanoseconds of one clock."""

    begin_ns: int
    end_ns: int
    label: str
    """Of compute: its category. Of communication: its kind."""
    launched_ns: int | None = None
    """When the host had launched it; None where nobody knows, or it ran on the host."""


def merge(intervals: Iterable[Interval]) -> Merged:
    """Where any of `intervals` is."""
    merged: Merged = []
    for begin, end in sorted((i.begin_ns, i.end_ns) for i in intervals if i.end_ns > i.begin_ns):
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((begin, end))
    return merged


def length_ns(merged: Merged) -> int:
    """How long they are together."""
    return sum(end - begin for begin, end in merged)


def inside(intervals: Iterable[Interval], where: Merged) -> list[Interval]:
    """The parts of `intervals` that lie in `where`."""
    return [
        Interval(max(begin, interval.begin_ns), min(end, interval.end_ns), interval.label)
        for interval in intervals
        for begin, end in where
        if max(begin, interval.begin_ns) < min(end, interval.end_ns)
    ]


def outside(intervals: Sequence[Interval], where: Merged) -> list[Interval]:
    """The parts of `intervals` that do not lie in `where`."""
    if not intervals:
        return []
    first, last = min(i.begin_ns for i in intervals), max(i.end_ns for i in intervals)
    begins = [first, *(end for _, end in where)]
    ends = [*(begin for begin, _ in where), last]
    return inside(intervals, list(zip(begins, ends, strict=True)))
