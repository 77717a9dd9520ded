"""How often to save: the formulas against published numbers, and what is said of what was not seen."""

from pathlib import Path

import pytest
from harness.ledger_builder import Rank, books_of

from train.ledger.advice import advise, expected_ettr

MEASURED = {"up_s": 7200.0, "failures": 2, "preemptions": 0, "save_s": 2.0, "restart_s": 60.0, "step_s": 0.5}


def test_expected_ettr_is_the_papers() -> None:
    """arXiv 2410.21680: 2000 nodes at 6.5 failures in 1000 node-days, 5 min a restart, saves that hold up nothing."""
    mttf_s = 86400 / (2000 * 6.5e-3)
    assert expected_ettr(3600, 0, 300, mttf_s) == pytest.approx(0.7, abs=0.03)
    assert expected_ettr(300, 0, 300, mttf_s) == pytest.approx(0.93, abs=0.005)


def test_youngs_interval_from_what_was_measured() -> None:
    advice = advise(**MEASURED, interval_s=1200.0)
    assert advice.mttf_s == 3600
    assert advice.best_interval_s == 120  # √(2 · 2 · 3600)
    assert advice.best_steps == 240
    assert advice.expected_ettr == pytest.approx((1 - (60 + 600) / 3600) / (1 + 2 / 1200))
    assert advice.expected_ettr_best == pytest.approx((1 - (60 + 60) / 3600) / (1 + 2 / 120))
    assert advice.sentence == (
        "a failure every 60 min (2 seen), a restart takes 60 s, a save holds up training for 2 s: save every 2 min "
        "(240 steps): expected ETTR 95.1%; every 20 min (2,400 steps), as it was, gives 81.5%"
    )
    assert advise(**MEASURED, interval_s=130.0).sentence.endswith(
        ": every 2.17 min (260 steps) is right (expected ETTR 95.1%)"
    )


def test_what_was_not_seen_is_not_claimed() -> None:
    no_failure = advise(**MEASURED | {"failures": 0, "restart_s": None}, interval_s=30.0)
    assert no_failure.mttf_s is None
    assert no_failure.mttf_at_least_s == pytest.approx(7200 / 3, rel=0.01)
    assert no_failure.expected_ettr is None
    assert no_failure.sentence == (
        "no failure in 2 h, so that one comes every 40.1 min or less often (95 %); a save holds up training for 2 s, "
        "every 30 s (60 steps): more often than every 98 s (196 steps) costs more than it keeps"
    )
    not_yet_restarted = advise(**MEASURED | {"restart_s": None}, interval_s=30.0)
    assert not_yet_restarted.sentence.endswith("save every 2 min (240 steps); it was every 30 s (60 steps)")
    assert "no save was seen" in advise(**MEASURED | {"save_s": None}, interval_s=None).sentence
    assert "mttf_at_least_s" not in advise(**MEASURED, interval_s=30.0).as_json()


def test_no_interval_is_shorter_than_a_step() -> None:
    advice = advise(**MEASURED | {"save_s": 1e-6, "step_s": 5.0}, interval_s=5.0)
    assert (advice.best_interval_s, advice.best_steps) == (5.0, 1)


def test_it_is_fed_by_the_books(tmp_path: Path) -> None:
    """A crash, 4 s to notice, 6 s down, 3 s to start and 2 s above the usual in the first step; a preemption."""
    one = Rank(tmp_path, 1).start(0, 0, 0).event("resumed", step=0, passed_over=[])
    for step in (1, 3, 5):
        one.steps(step, 2, 2).event("saving", step=step + 1).tile(ckpt_save=0.5).committed(step + 1)
    one.hang(one.now + 4, "data_wait", 7, one.now).gone(one.now + 4, "data_wait", 7, one.now)
    one = Rank(tmp_path, 2).start(one.now + 10, one.now + 11, one.now + 13)
    one.event("resumed", step=6, passed_over=[]).steps(7, 4, 2).exit("preempted")
    one = Rank(tmp_path, 3).start(one.now + 1, one.now + 1, one.now + 1).event("resumed", step=8, passed_over=[])
    one.steps(9, 2).exit("finished")
    advice = books_of(tmp_path).advice
    up_s = 13.5 + 4 + 9 + 2
    assert (advice.up_s, advice.failures, advice.preemptions) == (up_s, 1, 1)
    assert (advice.save_s, advice.restart_s, advice.step_s, advice.interval_s) == (0.5, 4 + 6 + 3 + 2, 2, 18 / 3)
    assert advice.best_interval_s == pytest.approx((2 * 0.5 * up_s) ** 0.5)
