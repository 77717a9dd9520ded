"""A step's buckets: their mean over rows."""

import pytest

from train.metrics.breakdown import APART, BUCKETS, mean_breakdown, mean_of


def test_buckets_are_named_once() -> None:
    assert len({*BUCKETS, *APART}) == len(BUCKETS) + len(APART)


def test_the_mean_is_over_rows_that_were_divided() -> None:
    rows = [
        {"train/step": 1, "perf/step_time_s": 9.0},
        {"time/wall_s": 1.0, "time/compute_fwd_s": 0.7, "time/exposed_comm/ep_s": 0.3},
        {"time/wall_s": 2.0, "time/compute_fwd_s": 2.1, "time/other_s": -0.1},
    ]
    expected = {"compute_fwd": 1.4, "exposed_comm/ep": 0.15, "other": -0.05, "wall": 1.5}
    assert mean_breakdown(rows) == pytest.approx(expected)
    assert list(mean_breakdown(rows)) == list(expected)  # the order of BUCKETS


def test_what_stands_apart_is_no_step() -> None:
    row = {"time/wall_s": 9.0, "time/compute_fwd_s": 1.0, "time/eval_s": 3.0, "time/profile_s": 5.0}
    assert mean_breakdown([row]) == {"compute_fwd": 1.0, "wall": 1.0}


def test_rows_that_were_not_divided_have_none() -> None:
    assert mean_breakdown([]) == {}
    assert mean_breakdown([{"train/step": 1, "time/compute_fwd_s": 0.7}]) == {}


def test_runs_are_averaged_as_rows_are() -> None:
    runs = [{"bubble": 1.0, "compute_fwd": 1.0, "wall": 2.0}, {"compute_fwd": 4.0, "wall": 4.0}]
    assert mean_of(runs) == {"compute_fwd": 2.5, "bubble": 0.5, "wall": 3.0}
    assert mean_of([]) == {}
