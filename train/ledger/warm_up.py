"""What the first steps of an attempt took above the usual: compilation, caches that fill, connections that open."""

import statistics
from collections import defaultdict
from collections.abc import Sequence

from train.ledger.lineage import Stepped
from train.ledger.steps_spent import StepsSpent

LONGEST = 10
"""Steps."""
MARKED = 2
"""A step after the first one is of the warm-up while all before it are and it takes so many times the usual."""


def take_off_warm_up(attempts: Sequence[Stepped]) -> None:
    """Mark it in all steps. The usual is a rank's median over all attempts in the same layout, without their first."""
    alike: dict[tuple[str, int, int], list[list[StepsSpent]]] = defaultdict(list)
    for one in attempts:
        for rank, steps in one.steps.items():
            if steps:
                alike[one.attempt.first.layout, one.attempt.size, rank].append(steps)
    for of_one_rank in alike.values():
        starts = [[ns for spent in steps for ns in spent.own_ns] for steps in of_one_rank]
        later = [ns for own_ns in starts for ns in own_ns[1:]] or [own_ns[0] for own_ns in starts]
        usual = statistics.median_low(later)
        for steps in of_one_rank:
            _mark(steps, usual)


def _mark(steps: Sequence[StepsSpent], usual: int) -> None:
    places = [(spent, i) for spent in steps for i in range(len(spent.own_ns))]
    for number, (spent, i) in enumerate(places[:LONGEST]):
        if number and spent.own_ns[i] <= MARKED * usual:
            return
        spent.warm_up_ns[i] = max(0, spent.own_ns[i] - usual)
