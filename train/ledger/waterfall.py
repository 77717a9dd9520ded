"""From all of a job's rank-seconds down to what trained the model: each bucket takes its part off what is above it."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from train.ledger.books import Books
from train.ledger.buckets import COMPUTE, LOST, OUTSIDE, SKIPPED, START_UP, is_of_steps


class Group(Enum):
    """What a rung is of."""

    level = "what is left"
    outside = "no process, or none that gets on"
    start_up = "start-up"
    lost = "steps that do not stay"
    between = "between steps"
    in_steps = "waits in steps"


@dataclass(frozen=True)
class Rung:
    """One line of the waterfall, in rank-nanoseconds."""

    name: str
    group: Group
    top: float
    bottom: float
    """Of a level 0; below 0 never, above `top` where a residual is negative."""

    @property
    def ns(self) -> float:
        """What it takes off, or of a level what is left."""
        return self.top - self.bottom


def waterfall(books: Books) -> list[Rung]:
    """Levels, and between them all that has time in it."""
    return list(_rungs(books))


def _rungs(books: Books) -> Iterator[Rung]:
    left: float = books.total
    yield Rung("all rank-seconds", Group.level, left, 0)
    for name, ns in books.buckets.items():
        if ns and not is_of_steps(name):
            yield Rung(name, _group(name), left, left - ns)
            left -= ns
    counted = sum(books.counted.values())
    if left > counted:
        yield Rung("steps at risk, not saved yet", Group.lost, left, counted)
    yield Rung("goodput (ETTR)", Group.level, counted, 0)
    left = counted
    for name, ns in books.counted.items():
        if ns and name not in COMPUTE and books.compute_fraction is not None:
            yield Rung(name, Group.in_steps, left, left - ns)
            left -= ns
    if left < counted:
        yield Rung("compute", Group.level, left, 0)
    if books.ideal_ns:
        yield Rung("the same at peak (speed of light)", Group.level, books.ideal_ns, 0)


def _group(bucket: str) -> Group:
    if bucket in OUTSIDE:
        return Group.outside
    if bucket in START_UP:
        return Group.start_up
    return Group.lost if bucket.startswith(LOST) or bucket == SKIPPED else Group.between
