"""A few cases in which every two values meet that can: most faults of a combination are a pair's (Kuhn et al. 2004)."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

Case = dict[str, str]
Pair = tuple[tuple[str, str], tuple[str, str]]


def pairs_of(case: Case) -> set[Pair]:
    """(factor, value) beside (factor, value), in the order of the case's factors."""
    return set(combinations(case.items(), 2))


def covering_cases(factors: Mapping[str, Sequence[str]], allowed: Callable[[Case], bool]) -> list[Case]:
    """Greedy, and the same each time: a case is begun with the first pair that is missing, and each further factor
    takes the value that brings most others. `allowed` judges cases that may still lack factors."""
    missing: dict[Pair, None] = {
        ((a, x), (b, y)): None for a, b in combinations(factors, 2) for x in factors[a] for y in factors[b]
    }
    cases: list[Case] = []
    while missing:
        pair = next(iter(missing))
        filled = _fill(dict(pair), factors, missing, allowed)
        if filled is None:  # the two can never meet
            del missing[pair]
            continue
        case = {name: filled[name] for name in factors}
        cases.append(case)
        for met in pairs_of(case):
            missing.pop(met, None)
    return cases


def _fill(
    case: Case, factors: Mapping[str, Sequence[str]], missing: Mapping[Pair, None], allowed: Callable[[Case], bool]
) -> Case | None:
    """A complete case that begins with `case`."""
    if not allowed(case):
        return None
    name = next((name for name in factors if name not in case), None)
    if name is None:
        return case
    order = list(factors)

    def gain(value: str) -> int:
        others = ((other, case[other]) for other in case)
        pairs = ((o, (name, value)) if order.index(o[0]) < order.index(name) else ((name, value), o) for o in others)
        return sum(pair in missing for pair in pairs)

    for value in sorted(factors[name], key=gain, reverse=True):  # stable: of equals the first
        filled = _fill(case | {name: value}, factors, missing, allowed)
        if filled is not None:
            return filled
    return None
