"""Rows of a run that goes on."""

from pathlib import Path

import pytest
from harness.ledger_builder import Rank, S

from train.ledger.events import now_ns
from train.ledger.live import LiveBooks


def test_what_is_live_is_at_risk_and_not_lost(tmp_path: Path) -> None:
    now = now_ns() / S
    one = Rank(tmp_path, 1).start(now - 20, now - 19, now - 18).event("resumed", step=0, passed_over=[])
    one.steps(1, 2, 2).committed(2).steps(3, 2, 2)
    live = LiveBooks(tmp_path)
    row = live.row()
    assert row["goodput/wall_s"] == pytest.approx(20, abs=1)
    assert row["goodput/durable"] == row["goodput/ettr"] == pytest.approx(4 / 20, abs=0.01)
    assert row["goodput/optimistic"] == pytest.approx(8 / 20, abs=0.02)
    assert row["goodput/bucket/in_progress_s"] == pytest.approx(10, abs=1)
    assert row["goodput/bucket/compute_fwd_s"] == pytest.approx(8)
    assert not any(name.startswith("goodput/bucket/lost_work") for name in row)
    assert live.row() == {}  # so soon after
    assert live.books()


def test_without_a_ledger_there_is_no_row(tmp_path: Path) -> None:
    assert LiveBooks(tmp_path).row() == {}
