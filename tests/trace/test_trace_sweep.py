"""The sweep beside one that looks at every nanosecond, on random intervals."""

import random
from collections import Counter

import pytest

from train.trace.intervals import Interval
from train.trace.sweep import HOST_RANGES, Sweep, sweep

KINDS = ("dp", "ep", "tp")


def some(rng: random.Random, labels: tuple[str, ...]) -> list[Interval]:
    """Up to 12 intervals within 200 ns, some of no length, many that touch."""
    begins = [rng.randrange(0, 180, 5) for _ in range(rng.randrange(12))]
    return [Interval(b, b + rng.choice((0, 1, 5, 7, 20)), rng.choice(labels), rng.randrange(200)) for b in begins]


def ns(seconds: float) -> int:
    return round(seconds * 1e9)


def by_nanosecond(compute: list[Interval], communication: list[Interval], neither: list[Interval]) -> Counter[str]:
    """The same numbers, ns, found by asking of each nanosecond what runs."""
    every = [*compute, *communication, *neither]
    found: Counter[str] = Counter()
    was_idle = False
    for now in range(min(i.begin_ns for i in every), max(i.end_ns for i in every)):
        computes = any(i.begin_ns <= now < i.end_ns for i in compute)
        talking = sorted((i.begin_ns, i.label) for i in communication if i.begin_ns <= now < i.end_ns)
        found["span"] += 1
        found["compute"] += computes
        found["communication"] += bool(talking)
        found["both"] += computes and bool(talking)
        for kind in {label for _, label in talking}:
            found[f"communication/{kind}"] += 1
        if talking and not computes:
            found["exposed"] += 1
            found[f"exposed/{talking[0][1]}"] += 1
        idle = not computes and not talking
        found["idle"] += idle
        found["gaps"] += idle and not was_idle
        was_idle = idle
    return +found


def of_sweep(swept: Sweep) -> Counter[str]:
    found = Counter(
        {
            "span": ns(swept.span_s),
            "compute": ns(swept.compute_s),
            "communication": ns(swept.communication_s),
            "both": ns(swept.both_s),
            "exposed": ns(swept.exposed_s),
            "idle": ns(swept.idle_s),
            "gaps": swept.n_gaps,
        }
    )
    found.update({f"communication/{kind}": ns(s) for kind, s in swept.communication_by_kind_s.items()})
    found.update({f"exposed/{kind}": ns(s) for kind, s in swept.exposed_by_kind_s.items()})
    return +found


@pytest.mark.parametrize("seed", range(300))
def test_every_nanosecond_is_booked_once(seed: int) -> None:
    rng = random.Random(seed)
    compute, communication, neither = some(rng, ("gemm", "copy")), some(rng, KINDS), some(rng, ("log",))
    if not [*compute, *communication, *neither]:
        neither = [Interval(0, 10, "log")]
    swept = sweep(HOST_RANGES, compute, communication, neither)
    assert of_sweep(swept) == by_nanosecond(compute, communication, neither)
    parts = ns(swept.compute_s) + ns(swept.communication_s) - ns(swept.both_s) + ns(swept.idle_s)
    assert parts == ns(swept.span_s)
    assert sum(map(ns, swept.exposed_by_kind_s.values())) == ns(swept.exposed_s)
    assert sum(map(ns, swept.compute_by_category_s.values())) == sum(i.end_ns - i.begin_ns for i in compute)
    assert 0 <= ns(swept.host_gaps_s) <= ns(swept.idle_s)
    assert swept.n_host_gaps <= swept.n_gaps


def test_the_kind_that_began_first_is_charged_even_when_it_was_hidden_then() -> None:
    compute = [Interval(0, 50, "gemm")]
    communication = [Interval(60, 100, "dp"), Interval(40, 80, "tp"), Interval(60, 90, "ep")]
    swept = sweep(HOST_RANGES, compute, communication)
    assert {kind: ns(s) for kind, s in swept.exposed_by_kind_s.items()} == {"tp": 30, "dp": 20}


@pytest.mark.parametrize(
    ("launched", "waited"),
    [(None, 0), (5, 0), (10, 0), (17, 7), (30, 20), (40, 20)],
    ids=["unknown", "long before", "as the gap begins", "inside", "as it ends", "the call returned late"],
)
def test_a_gap_is_the_hosts_until_what_ends_it_was_launched(launched: int | None, waited: int) -> None:
    swept = sweep(HOST_RANGES, [Interval(0, 10, "gemm"), Interval(30, 40, "gemm", launched)], [])
    assert (swept.n_gaps, ns(swept.largest_gap_s)) == (1, 20)
    assert (swept.n_host_gaps, ns(swept.host_gaps_s)) == (int(waited > 0), waited)


def test_nothing_to_sweep() -> None:
    with pytest.raises(ValueError, match="nothing ran"):
        sweep(HOST_RANGES, [], [])
