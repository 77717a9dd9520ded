"""The books beside an onlooker's, of jobs that are not one torchrun's: torn lines, two starts at once, another's."""

import subprocess
import sys
from pathlib import Path

import pytest
from harness.observed import observed
from harness.observed_job import JOB, compare, lived, start
from harness.run_record import RunRecord
from harness.torchrun import torchrun
from harness.true_books import Account, End, truth

from train.ledger.fold import fold
from train.ledger.read import read_ledger

BOTH = pytest.mark.parametrize("ranks", [2, 4])
pytestmark = pytest.mark.soak


@BOTH
def test_a_torn_last_line(ranks: int, tmp_path: Path) -> None:
    run = tmp_path / "run"
    lives = lived(start(run, ranks, faults="{what: sigkill, rank: 1, step: 7}"), succeeds=False)
    for name in ("rank-00000.jsonl", "watch-00001.jsonl"):
        path = run / "ledger" / "attempt-0001" / name
        path.write_bytes(path.read_bytes()[:-9])
    lives += lived(start(run, ranks))
    books = fold(read_ledger(run))
    assert books.dropped_lines == 2
    compare(books, truth(tmp_path / "stamps", lives, Account(ranks, (0, 4), (End("crash"), End(None)))), ranks)


@BOTH
def test_two_starts_alive_at_once(ranks: int, tmp_path: Path) -> None:
    """The second takes the folder; the first finds out, and leaves it alone."""
    run = tmp_path / "run"
    record, words = RunRecord(run), ("train.steps=150", "checkpoint.every=10")
    with start(run, ranks, *words) as first, observed(first) as lives_of_first:
        first.wait_for(lambda _: record.last_step >= 12)
        lives = lived(start(run, ranks, *words))
        done = first.wait()
    assert "a newer start of this job has its folder" in done.stderr
    books = fold(read_ledger(run))
    resumed_after = books.attempts[1].resumed_after
    assert resumed_after
    assert resumed_after % 10 == 0
    ends = (End("fenced", in_order=True), End(None))
    compare(books, truth(tmp_path / "stamps", lives_of_first + lives, Account(ranks, (0, resumed_after), ends)), ranks)


def test_another_job_in_its_folder_changes_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    lived(start(run, 2))
    before = fold(read_ledger(run))
    files = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))
    done = torchrun(2, *JOB, "optim.lr=0.1", f"run.dir={run}", cwd=tmp_path)
    assert done.returncode != 0
    assert "optim.lr=0.1, and " in done.stderr
    assert sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*")) == files
    assert fold(read_ledger(run)) == before
    told = subprocess.run([sys.executable, "-m", "launch.cli", "goodput", str(run)], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
