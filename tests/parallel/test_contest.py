"""Schedules against each other on paper: the figures that were known, and what a pair hides."""

import random
from collections import defaultdict
from dataclasses import replace

import pytest

from parallel.pipeline.cell_times import CellTimes
from parallel.pipeline.contest import Entry, enter, hold_contest
from parallel.pipeline.schedules import PAIRED, ScheduleName, build_schedule

KNOWN = {
    (ScheduleName.one_f_one_b, False): 61.5,
    (ScheduleName.interleaved_1f1b, False): 67.6,
    (ScheduleName.interleaved_1f1b, True): 83.8,
    (ScheduleName.zbv, False): 72.0,
    (ScheduleName.dualpipev, False): 68.4,
    (ScheduleName.dualpipev, True): 84.8,
    (ScheduleName.dualpipe, True): 85.3,
}
"""Useful compute, %, of 8 ranks and 32 micro-batches where forward and the halves of backward take 1, all-to-alls 0.5
each way: simulated by another program, before this one was."""


def entries(pp: int, micro_batches: int, times: CellTimes) -> dict[tuple[ScheduleName, bool], Entry]:
    return {(entry.name, entry.paired): entry for entry in hold_contest(pp, micro_batches, times).entries}


def test_known_figures() -> None:
    found = entries(8, 32, CellTimes())
    assert {key: round(100 * found[key].compute, 1) for key in KNOWN} == KNOWN
    assert found[ScheduleName.dualpipev, True].activations == 17 / 2
    assert found[ScheduleName.interleaved_1f1b, False].activations == 23 / 2
    assert found[ScheduleName.interleaved_1f1b, True].activations == 24 / 2, "one forward more ahead"
    assert [found[key].copies for key in KNOWN] == [1, 1, 1, 1, 1, 1, 2]


@pytest.mark.parametrize("times", [CellTimes(), CellTimes(2, 3, 1, 4, send=0.25, attention=0.3)])
def test_compute_exposed_and_bubble_are_the_whole(times: CellTimes) -> None:
    contest = hold_contest(4, 16, times)
    assert contest.refused == []
    assert [entry.makespan for entry in contest.entries] == sorted(entry.makespan for entry in contest.entries)
    for entry in contest.entries:
        assert entry.compute + entry.exposed + entry.bubble == pytest.approx(1)
        assert entry.exposed <= entry.all_to_all * (1 + 1e-9)
        if not entry.paired:
            assert entry.hidden == pytest.approx(0)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("name", PAIRED)
def test_stages_may_be_of_different_sizes(name: ScheduleName, paired: bool) -> None:
    """What the largest stage adds is bubble; without all-to-alls a pair takes as long as its two halves."""
    schedule = build_schedule(name, 2, 16, None, paired)
    shares = (1.4, 0.6) if schedule.n_stages == 2 else (1.4, 0.7, 0.8, 1.1)
    times = CellTimes(attention=0.3)
    entry, equal = enter(schedule, name, times, paired, shares), enter(schedule, name, times, paired)
    assert entry.makespan > equal.makespan or schedule.n_chains == 2, "a rank of DualPipe has one of each"
    assert entry.compute + entry.exposed + entry.bubble == pytest.approx(1)
    alone, pairs = (enter(schedule, name, replace(times, all_to_all=0), way, shares) for way in (False, True))
    assert pairs.makespan == pytest.approx(alone.makespan)
    assert pairs.exposed == pytest.approx(0, abs=1e-12)


def test_without_all_to_alls_pairs_gain_nothing() -> None:
    found = entries(4, 16, CellTimes(all_to_all=0))
    for name in PAIRED:
        assert found[name, True].makespan == pytest.approx(found[name, False].makespan)
        assert found[name, True].hidden == 0


def test_what_cannot_run_is_said() -> None:
    contest = hold_contest(3, 4, CellTimes())
    assert {entry.name for entry in contest.entries}.isdisjoint({ScheduleName.dualpipe, ScheduleName.dualpipev})
    assert any("it pairs ranks; set strategy.pp to an even number" in line for line in contest.refused)


def test_a_stage_of_two_takes_half() -> None:
    """One rank-share is as long in any number of stages, so what a schedule of one rank computes is."""
    times = CellTimes(3, 3, 3, 1)
    assert times.scaled(1 / 3) == CellTimes(1, 1, 1, pytest.approx(1 / 3))
    assert hold_contest(2, 8, times).entries[-1].compute == pytest.approx(8 * 9 / ((8 + 1) * 11))  # 1f1b, gpipe


def test_a_pair_hides_what_fits_behind_compute() -> None:
    assert CellTimes().pair() == pytest.approx(3)  # each of four travels behind its neighbour
    assert CellTimes(all_to_all=0.5, attention=0.0).pair() == pytest.approx(3.5)  # first and last: behind nothing
    assert CellTimes(all_to_all=2).pair() == pytest.approx(4)  # communication alone, from the first to the last
    busy = [CellTimes(all_to_all=travel).pair() for travel in (0, 0.5, 1, 1.5, 2, 4)]
    assert busy == sorted(busy)
    assert busy[-1] == pytest.approx(2 * 4)


ORDER = (
    # What, its stream, its part of what, after what in the same layer or (-1) the one before.
    ("combine_b", "wire", "travel", "attention_b", -1),
    ("attention_f", "compute", "forward_before", "combine_f", -1),
    ("experts_b", "compute", "backward_after", "combine_b", 0),
    ("dispatch_f", "wire", "travel", "attention_f", 0),
    ("dispatch_b", "wire", "travel", "experts_b", 0),
    ("experts_f", "compute", "forward_after", "dispatch_f", 0),
    ("combine_f", "wire", "travel", "experts_f", 0),
    ("attention_b", "compute", "backward_before", "dispatch_b", 0),
)


@pytest.mark.parametrize("layers", [1, 2, 7])
def test_a_pair_is_what_two_streams_make_of_the_canonical_order(layers: int) -> None:
    draw = random.Random(layers)
    for _ in range(200):
        times = CellTimes(*(draw.uniform(0, 3) for _ in range(4)), attention=draw.random())
        after = 1 - times.attention
        lasts = {
            "travel": times.all_to_all / 2,
            "forward_before": times.forward * times.attention,
            "forward_after": times.forward * after,
            "backward_after": (times.input + times.weight) * after,
            "backward_before": (times.input + times.weight) * times.attention,
        }
        free, ends = defaultdict[str, float](float), defaultdict[tuple[str, int], float](float)
        for layer in range(layers):
            for name, stream, part, need, of_layer in ORDER:
                free[stream] = max(free[stream], ends[need, layer + of_layer]) + lasts[part] / layers
                ends[name, layer] = free[stream]
        assert times.pair() == pytest.approx(max(free.values()))
