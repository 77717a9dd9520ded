"""Rows of a run that goes on."""

import time
from pathlib import Path

import pytest
from harness.ledger_builder import Rank, S

from train.ledger import live
from train.ledger.events import now_ns
from train.ledger.live import LiveBooks


def test_what_is_live_is_at_risk_and_not_lost(tmp_path: Path) -> None:
    now = now_ns() / S
    one = Rank(tmp_path, 1).start(now - 20, now - 19, now - 18).event("resumed", step=0, passed_over=[])
    one.steps(1, 2, 2).committed(2).steps(3, 2, 2)
    books = LiveBooks(tmp_path, 1, time.monotonic() - 20)
    row = books.row()
    assert row["goodput/wall_s"] == pytest.approx(20, abs=1)
    assert row["goodput/durable"] == row["goodput/ettr"] == pytest.approx(4 / 20, abs=0.01)
    assert row["goodput/optimistic"] == pytest.approx(8 / 20, abs=0.02)
    assert row["goodput/bucket/in_progress_s"] == pytest.approx(10, abs=1)
    assert row["goodput/bucket/compute_fwd_s"] == pytest.approx(8)
    assert not any(name.startswith("goodput/bucket/lost_work") for name in row)
    assert books.row() == {}  # so soon after
    assert books.last("finished")


def test_without_a_ledger_there_is_no_row(tmp_path: Path) -> None:
    assert LiveBooks(tmp_path, 1, time.monotonic() - 20).row() == {}


def test_a_long_ledger_is_not_read_at_the_start_nor_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = Rank(tmp_path, 1).start(1, 2, 3)
    path = next(tmp_path.rglob("*.jsonl"))
    with path.open("ab") as file:
        file.truncate(round((live.LONGEST_S + 1) / live.S_PER_BYTE))
    monkeypatch.setattr(live, "read_ledger", lambda folder: pytest.fail("it was read"))
    books = LiveBooks(tmp_path, 1, time.monotonic() - 20)
    assert books.row() == {}
    assert books.last("finished") is None
    assert books.last("finished") is None
    assert [record.getMessage() for record in caplog.records] == [
        f"the books of {tmp_path} are left out of the last row: they would take about 6 s: see switchyard goodput"
    ]
    assert one.now == 3


def test_where_a_newer_attempt_has_the_run_there_is_no_row(tmp_path: Path) -> None:
    now = now_ns() / S
    Rank(tmp_path, 1).start(now - 20, now - 19, now - 18)
    assert LiveBooks(tmp_path, 1, time.monotonic() - 20).row()
    Rank(tmp_path, 2).start(5, 6, 7, boot="boot-b")
    assert LiveBooks(tmp_path, 1, time.monotonic() - 20).row() == {}
    assert LiveBooks(tmp_path, 1, time.monotonic() - 20).last("finished") is None


def test_books_that_cannot_be_made_are_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: object) -> None:
        raise AssertionError("a bucket too many")

    Rank(tmp_path, 1).start(1, 2, 3)
    monkeypatch.setattr(live, "fold", broken)
    books = LiveBooks(tmp_path, 1, time.monotonic() - 20)
    assert books.row() == {}
    assert books.last("finished") is None
    assert len(caplog.records) == 1
    assert "cannot be made (AssertionError: a bucket too many)" in caplog.records[0].getMessage()
