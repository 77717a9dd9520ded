"""How a job ends whose saves fail, or whose last steps are no place to come back to."""

import json
from pathlib import Path
from typing import Any

import pytest
from harness.job_in_pool import job_in_pool
from harness.run_record import RunRecord
from harness.worker_pool import WorkerPool

JOB = ("model=tiny", "train.device=cpu", "train.steps=8", "train.eval_sequences=0", "checkpoint.every=4", "logging=off")
FULL = "cannot be written (rank 0: No space left on device (faults.inject)): make room there"
TOLD = ("{what: sigterm, step: 5, place: data}", "{what: slow, step: 5, place: forward, seconds: 0.5}")
"""That step's sum tells all of it, and step 6 is the last."""


def events(record: RunRecord, kind: str) -> list[dict[str, Any]]:
    lines = (record.folder / "ledger/attempt-0001/rank-00000.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["ev"] == kind]


def job(pool: WorkerPool, folder: Path, *faults: str, words: tuple[str, ...] = ()) -> tuple[int, list[str], RunRecord]:
    done = job_in_pool(pool, 1, *JOB, *words, f"faults.inject=[{', '.join(faults)}]", f"run.dir={folder}")
    return (
        done.returncode,
        [line for line in done.stderr.splitlines() if line.startswith("switchyard:")],
        RunRecord(folder),
    )


def test_a_stop_whose_save_fails_is_a_stop(pool: WorkerPool, tmp_path: Path) -> None:
    code, (line,), record = job(pool, tmp_path / "run", *TOLD, "{what: fail, step: 6}")
    assert code == 75
    assert line.startswith("switchyard: told to end (SIGTERM): ended after step 6, not saved (")
    assert f"step-00000006 {FULL}); the same words go on" in line
    assert [(event["cause"], event["code"]) for event in events(record, "exit")] == [("preempted", 75)]
    assert record.saved_steps == [4]


@pytest.mark.soak
def test_a_stop_where_the_job_must_go_back_leaves_that_to_the_next_start(pool: WorkerPool, tmp_path: Path) -> None:
    words = ("recovery.non_finite_in_a_row=1", "train.log_every=1")
    code, (line,), record = job(pool, tmp_path / "run", *TOLD, "{what: non_finite, step: 6}", words=words)
    assert code == 75
    assert "ended after step 6, not saved (its last steps were not finite); the same words go on" in line
    assert (len(events(record, "stop")), events(record, "rollback"), record.saved_steps) == (1, [], [4])


@pytest.mark.soak
def test_a_save_that_failed_long_ago_refuses_no_job_that_is_done(pool: WorkerPool, tmp_path: Path) -> None:
    code, lines, record = job(
        pool, tmp_path / "run", "{what: fail, step: 4}", words=("checkpoint.at_end=false", "train.steps=6")
    )
    assert code == 0
    (line,) = lines
    assert f"step-00000004 {FULL}" in line
    assert [event["cause"] for event in events(record, "exit")] == ["finished"]


def test_a_rollback_says_what_it_passed_over(pool: WorkerPool, tmp_path: Path) -> None:
    words = ("checkpoint.every=2", "checkpoint.keep=0", "recovery.non_finite_in_a_row=1", "overlap.checkpoint=false")
    faults = ("{what: corrupt, step: 4}", "{what: non_finite, step: 5}")
    code, (line,), record = job(pool, tmp_path / "run", *faults, words=words)
    assert code == 0
    assert "step-00000004 is damaged" in line
    assert [(event["step"], event["passed_over"]) for event in events(record, "rollback")] == [(2, [4])]
