"""Ranks of one attempt by one clock: that of its lowest rank.

On one boot of one host all clocks are one. Hosts are put beside each other by the moment at which all ranks had joined,
which is the same for all of them.
"""

from dataclasses import dataclass, replace
from typing import TypeVar

from train.ledger.read import AttemptEvents, RankEvents
from train.ledger.records import Event, Start

Kind = TypeVar("Kind", bound=Event)


@dataclass(frozen=True)
class Aligned:
    """An attempt of which at least one rank wrote a start."""

    number: int
    ranks: dict[int, RankEvents]
    """Those that wrote a start, all by one clock."""
    starts: dict[int, Start]
    clock_of_boot: dict[str, int]
    """By boot, what the attempt's clock shows more than that boot's."""

    @property
    def first(self) -> Start:
        """Of the lowest rank: what all of them have in common, and whose clock it is."""
        return self.starts[min(self.starts)]

    @property
    def size(self) -> int:
        """Ranks, with those that left nothing."""
        return self.first.ranks

    def wall(self, t: int) -> int:
        """The wall clock's nanoseconds at `t`."""
        return self.first.wall + t - self.first.t

    def every(self, kind: type[Kind]) -> list[tuple[int, Kind]]:
        """Events of one kind with their ranks, by time."""
        found = [
            (rank, event)
            for rank, events in self.ranks.items()
            for event in (*events.own, *events.watched)
            if isinstance(event, kind)
        ]
        return sorted(found, key=lambda entry: (entry[1].t, entry[0]))

    def of_rank(self, rank: int, kind: type[Kind]) -> list[Kind]:
        """What `rank` itself wrote of one kind; where it wrote none, what the lowest rank did that has some."""
        own = [event for event in self.ranks[rank].own if isinstance(event, kind)]
        if own:
            return own
        every = self.every(kind)
        return [event for its, event in every if its == min(its for its, _ in every)] if every else []


def align(attempt: AttemptEvents) -> Aligned | None:
    """The attempt by one clock; None if no rank wrote a start."""
    starts = {rank: start for rank, events in attempt.ranks.items() if (start := _start(events))}
    if not starts:
        return None
    first = starts[min(starts)]
    size = first.ranks
    ranks: dict[int, RankEvents] = {}
    aligned: dict[int, Start] = {}
    clock_of_boot: dict[str, int] = {}
    for rank, start in starts.items():
        if rank >= size:
            continue
        by = clock_of_boot.setdefault(start.boot, 0 if start.boot == first.boot else first.joined - start.joined)
        ranks[rank], aligned[rank] = _shifted(attempt.ranks[rank], by), start.shifted(by)
    if not ranks:
        return None
    return Aligned(attempt.number, ranks, aligned, clock_of_boot)


def _start(events: RankEvents) -> Start | None:
    return next((event for event in events.own if isinstance(event, Start)), None)


def _shifted(events: RankEvents, by: int) -> RankEvents:
    if by == 0:
        return events
    return replace(
        events,
        own=tuple(event.shifted(by) for event in events.own),
        watched=tuple(event.shifted(by) for event in events.watched),
    )
