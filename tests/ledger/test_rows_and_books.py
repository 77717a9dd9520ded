"""What a real job's rows, summary and books say of one and the same thing."""

import json
from pathlib import Path

import pytest
from harness.observed_job import JOB
from harness.run_record import RunRecord
from harness.torchrun import torchrun

from launch.cli import main
from train.ledger.fold import fold
from train.ledger.read import read_ledger


@pytest.mark.soak
def test_a_job_that_saves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunRecord(tmp_path / "run")
    words = (*JOB[:-1], "checkpoint=off", "train.global_batch_size=32", f"run.dir={run.folder}")
    done = torchrun(2, *words)
    assert done.returncode == 0, done.stderr
    books = fold(read_ledger(run.folder))

    last = run.rows[-1]
    counted_s = sum(books.counted.values()) / 1e9
    # The last row is made before the processes' end: the steps are the same, the whole is not yet.
    assert last["goodput/ettr"] * last["goodput/wall_s"] * 2 == pytest.approx(counted_s)
    assert (last["goodput/durable"], books.ettr_durable, books.durable_step, books.counted_step) == (0, 0, 0, 12)
    assert last["goodput/ettr"] == json.loads((run.folder / "summary.json").read_text())["ettr"]
    assert last["goodput/ettr"] == pytest.approx(books.ettr, rel=0.2)
    assert main(["goodput", str(run.folder)]) == 0
    assert "all 12 steps of the finished job, none is saved" in capsys.readouterr().out

    # Rows know a step's FLOPs and its time by a stopwatch of their own, which has the row's making and the warm-up too.
    rows = [row for row in run.rows if "perf/mfu" in row]
    assert len(rows) == books.standing_steps == 12
    mfu = len(rows) / sum(1 / row["perf/mfu"] for row in rows)
    assert books.mfu_in_step is not None
    beside_s = (books.buckets["warmup_compile"] + books.buckets["log"]) / 1e9
    assert books.mfu_in_step * counted_s / (counted_s + beside_s) == pytest.approx(mfu, rel=0.02)
