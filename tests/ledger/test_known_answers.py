"""Jobs whose goodput is known, among them those that a library which takes every step for productive gets wrong."""

from pathlib import Path

import pytest
from harness.ledger_builder import Rank, books_of


def ready(run: Path, attempt: int, at: float, after: int = 0) -> Rank:
    """A rank that starts in no time at all."""
    one = Rank(run, attempt).start(at, at, at)
    return one.event("resumed", step=after, passed_over=[])


def test_a_pause_before_the_very_next_step(tmp_path: Path) -> None:
    """Preempted after 10 steps of 10 s, all saved, down for 100 s, and on with step 11: two thirds."""
    one = ready(tmp_path, 1, 0).steps(1, *[10.0] * 10).committed(10).exit("preempted")
    ready(tmp_path, 2, one.now + 100, after=10).steps(11, *[10.0] * 10).exit("finished")
    books = books_of(tmp_path)
    assert books.ettr == pytest.approx(2 / 3)
    assert books.as_json()["buckets"]["down"] == 100


def test_a_save_after_each_step(tmp_path: Path) -> None:
    """5 s to each 10 s: two thirds."""
    one = ready(tmp_path, 1, 0)
    for step in range(1, 11):
        one.steps(step, 10).event("saving", step=step).tile(ckpt_save=5).committed(step)
    one.exit("finished")
    books = books_of(tmp_path)
    assert books.ettr == pytest.approx(2 / 3)
    assert books.saves.as_json() == {
        "begun": 10,
        "committed": 10,
        "unsaved": 0,
        "blocked_s": 5,
        "mean_seconds": 4,
        "mean_bytes": 2e9,
        "gb_per_s": 0.5,
    }


def test_data_that_comes_late(tmp_path: Path) -> None:
    """5 s of waiting in each step of 15 s is a step's, and shows: two thirds of it compute."""
    ready(tmp_path, 1, 0).steps(1, *[15.0] * 10, data_wait=50, compute_fwd=40, compute_bwd=60).exit("finished")
    books = books_of(tmp_path)
    assert books.compute_fraction == pytest.approx(2 / 3)
    assert books.as_json()["buckets"]["data_wait"] == 50
    assert books.ettr == 1


def test_a_crash_with_a_rollback(tmp_path: Path) -> None:
    """10 steps of 10 s, the last 5 of them lost and done again: two thirds of 150 s."""
    one = ready(tmp_path, 1, 0).steps(1, *[10.0] * 5).committed(5).steps(6, *[10.0] * 5)
    one.gone(one.now, "data_wait", 11, one.now)
    ready(tmp_path, 2, one.now, after=5).steps(6, *[10.0] * 5).exit("finished")
    assert books_of(tmp_path).ettr == pytest.approx(2 / 3)
