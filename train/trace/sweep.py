"""From intervals to what hid what: a walk over their sorted ends.

At every instant some compute runs or none, some communication or none: four cases that fill the span, so that

    span = compute + communication − both + idle        exactly: whole nanoseconds are added up

Exposed is communication while no compute runs. When several kinds are exposed at once, the instant is charged to the
one that began first (at a tie, to the first by name): it is what the others would have been hidden behind. So the
kinds' exposed seconds add up to `exposed_s`; their communication need not, since they run side by side.
"""

import heapq
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

from train.trace.intervals import Interval, length_ns, merge

NS_PER_S = 1_000_000_000
KERNELS, HOST_RANGES = "kernels", "host ranges"
"""Sources of a sweep."""


@dataclass(frozen=True)
class Sweep:
    """One step on one rank, in seconds."""

    source: str
    """What the intervals were: KERNELS (of a GPU) or HOST_RANGES."""
    span_s: float
    """From the first begin to the last end."""
    compute_s: float
    """Some compute ran."""
    communication_s: float
    """Some communication ran."""
    communication_by_kind_s: dict[str, float]
    """Some communication of the kind ran."""
    both_s: float
    """Communication that compute hid."""
    exposed_s: float
    """Communication that nothing hid."""
    exposed_by_kind_s: dict[str, float]
    """The same by kind; they add up."""
    idle_s: float
    """Nothing ran."""
    n_gaps: int
    """Intervals of idleness."""
    largest_gap_s: float
    n_host_gaps: int
    """Gaps in which the device waited for the host: what ended them had not been launched when they began."""
    host_gaps_s: float
    """That waiting: of each such gap, from its begin to the end of the launch."""
    n_kernels: int
    """Copies and memsets included; 0 from host ranges."""
    compute_by_category_s: dict[str, float]
    """Run time of compute kernels: more than `compute_s` where they ran side by side. From host ranges, by phase."""
    unknown_kinds_s: dict[str, float]
    """Run time of communication of kind `unknown`, by name."""
    stream_waits_s: dict[str, float]
    """By kind, what the compute stream waited for (train/trace/stream_waits.py); none from host ranges."""
    launched_by_category: dict[str, int] = field(default_factory=dict)
    """Kernels, copies and memsets that the step launched, by category; communication is one. None from host ranges."""
    host_waits: dict[str, int] = field(default_factory=dict)
    """How often the host waited for the device, by phase (train/trace/host_waits.py); none from host ranges."""
    waited_s: dict[str, float] = field(default_factory=dict)
    """By kind, what the clock's brackets around waits came to in the same step on the same rank, if one ran."""

    def write(self, path: Path) -> None:
        """As JSON. Raises OSError."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")


def sweep(
    source: str,
    compute: Sequence[Interval],
    communication: Sequence[Interval],
    neither: Sequence[Interval] = (),
    n_kernels: int = 0,
    unknown_kinds_s: Mapping[str, float] | None = None,
    stream_waits: Mapping[str, int] | None = None,
) -> Sweep:
    """Sweep the intervals, in any order; `neither` widens the span, and where nothing else runs it is idle. What the
    compute stream waited for, ns by kind, is taken over.

    Raises ValueError if there is none.
    """
    every = [*compute, *communication, *neither]
    if not every:
        raise ValueError("nothing ran: there is no interval to sweep")
    walk = _Walk(compute, communication, neither)
    by_kind: dict[str, list[Interval]] = defaultdict(list)
    for interval in communication:
        by_kind[interval.label].append(interval)
    by_category: dict[str, int] = defaultdict(int)
    for interval in compute:
        by_category[interval.label] += interval.end_ns - interval.begin_ns
    host_gaps = [waited for waited in _waits_for_host(walk.gaps, every) if waited]
    return Sweep(
        source=source,
        span_s=(max(i.end_ns for i in every) - min(i.begin_ns for i in every)) / NS_PER_S,
        compute_s=walk.compute_ns / NS_PER_S,
        communication_s=(walk.both_ns + sum(walk.exposed_ns.values())) / NS_PER_S,
        communication_by_kind_s=_seconds({kind: length_ns(merge(of_it)) for kind, of_it in by_kind.items()}),
        both_s=walk.both_ns / NS_PER_S,
        exposed_s=sum(walk.exposed_ns.values()) / NS_PER_S,
        exposed_by_kind_s=_seconds(walk.exposed_ns),
        stream_waits_s=_seconds(stream_waits or {}),
        idle_s=sum(end - begin for begin, end in walk.gaps) / NS_PER_S,
        n_gaps=len(walk.gaps),
        largest_gap_s=max((end - begin for begin, end in walk.gaps), default=0) / NS_PER_S,
        n_host_gaps=len(host_gaps),
        host_gaps_s=sum(host_gaps) / NS_PER_S,
        n_kernels=n_kernels,
        compute_by_category_s=_seconds(by_category),
        unknown_kinds_s=dict(unknown_kinds_s or {}),
    )


class _Walk:
    """Goes over all ends in order and books what lies between two of them."""

    def __init__(
        self, compute: Sequence[Interval], communication: Sequence[Interval], neither: Sequence[Interval]
    ) -> None:
        self.compute_ns = self.both_ns = 0
        self.exposed_ns: dict[str, int] = defaultdict(int)
        self.gaps: list[tuple[int, int]] = []
        """Disjoint, none beside another, in order."""
        change: dict[int, int] = defaultdict(int)
        for interval in compute:
            change[interval.begin_ns] += 1
            change[interval.end_ns] -= 1
        waiting = sorted(communication, key=lambda i: i.begin_ns, reverse=True)
        under_way: list[tuple[int, str, int]] = []  # (begin, kind, end), a heap: the first is charged
        ends = {end for interval in (*communication, *neither) for end in (interval.begin_ns, interval.end_ns)}
        n_compute = 0
        for now, then in pairwise(sorted(ends | change.keys())):
            n_compute += change.get(now, 0)
            while waiting and waiting[-1].begin_ns <= now:
                begun = waiting.pop()
                heapq.heappush(under_way, (begun.begin_ns, begun.label, begun.end_ns))
            while under_way and under_way[0][2] <= now:
                heapq.heappop(under_way)
            self._book(now, then, n_compute > 0, under_way[0][1] if under_way else None)

    def _book(self, begin: int, end: int, computes: bool, kind: str | None) -> None:
        if computes:
            self.compute_ns += end - begin
            self.both_ns += end - begin if kind is not None else 0
        elif kind is not None:
            self.exposed_ns[kind] += end - begin
        elif self.gaps and self.gaps[-1][1] == begin:
            self.gaps[-1] = self.gaps[-1][0], end
        else:
            self.gaps.append((begin, end))


def _waits_for_host(gaps: Sequence[tuple[int, int]], every: Iterable[Interval]) -> Iterable[int]:
    """Of each gap, how long what ends it was not yet launched, ns."""
    first_launched: dict[int, int] = {}
    for interval in every:
        if interval.launched_ns is not None:
            earlier = first_launched.get(interval.begin_ns, interval.launched_ns)
            first_launched[interval.begin_ns] = min(earlier, interval.launched_ns)
    for begin, end in gaps:
        yield max(0, min(end, first_launched.get(end, begin)) - begin)


def _seconds(ns: Mapping[str, int]) -> dict[str, float]:
    """Largest first."""
    return {name: n / NS_PER_S for name, n in sorted(ns.items(), key=lambda item: -item[1])}
