"""What the first steps of an attempt took above the usual: compilation, caches that fill, connections that open.

A loader that begins slowly is not that: waits for data are in neither.
"""

import statistics
from collections import defaultdict
from collections.abc import Sequence

from train.ledger.lineage import Stepped
from train.ledger.proportion import divide
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
        starts = [[ns for spent in steps for ns in spent.warmable_ns] for steps in of_one_rank]
        later = [ns for own_ns in starts for ns in own_ns[1:]] or [own_ns[0] for own_ns in starts]
        usual = statistics.median_low(later)
        for steps in of_one_rank:
            _mark(steps, usual)


def _mark(steps: Sequence[StepsSpent], usual: int) -> None:
    number, lasts = 0, True
    for spent in steps:
        taken = spent.warmable_ns
        above = [0] * len(taken)
        for i, ns in enumerate(taken):
            lasts &= number < LONGEST and (number == 0 or ns > MARKED * usual)
            number += 1
            above[i] = max(0, ns - usual) * lasts
        # One step's wait for data may have gone for another's compute: not more than all of them took above the usual.
        if any(above):
            spent.warm_up_ns = divide(min(sum(above), max(0, sum(taken) - len(taken) * usual)), above)
        if not lasts:
            return
