"""A step that was left out is none of the optimizer's: a job that comes back after one goes on exactly."""

from pathlib import Path

import pytest
import torch
from harness.run_record import RunRecord
from harness.train_alone import train_alone
from harness.worker_pool import WorkerFailure, WorkerPool

JOB = ("model=tiny", "train.device=cpu", "train.steps=8", "train.eval_sequences=0", "checkpoint.every=4", "logging=off")
JOB += ("optim.warmup_steps=2", "train.log_every=1", "overlap.checkpoint=false")
SKIP = "{what: non_finite, step: 2}"


def train(pool: WorkerPool, folder: Path, *faults: str, words: tuple[str, ...] = ()) -> RunRecord:
    pool.run(1, train_alone, *JOB, *words, f"faults.inject=[{', '.join(faults)}]", f"run.dir={folder}")
    return RunRecord(folder)


@pytest.fixture(scope="module")
def whole(pool: WorkerPool, tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """That had the same skip, and nothing else."""
    return train(pool, tmp_path_factory.mktemp("whole") / "run", SKIP)


def check_end(record: RunRecord, whole: RunRecord) -> None:
    """Rows 5 to 8 as they were done last, and the last state, to the bit."""
    for key in ("train/loss", "train/grad_norm", "train/tokens"):
        last = {row["train/step"]: row[key] for row in record.rows if key in row}
        assert [last[step] for step in (5, 6, 7, 8)] == whole.column(key)[-4:], key
    expected, got = whole.tensors(8), record.tensors(8)
    for key, tensor in expected.items():
        assert torch.equal(got[key], tensor), key


def test_a_resume(whole: RunRecord, pool: WorkerPool, tmp_path: Path) -> None:
    with pytest.raises(WorkerFailure):
        train(pool, tmp_path / "run", SKIP, "{what: crash, step: 6}")
    assert RunRecord(tmp_path / "run").saved_steps == [4]
    check_end(train(pool, tmp_path / "run", SKIP, "{what: crash, step: 6}"), whole)


def test_two_resumes(whole: RunRecord, pool: WorkerPool, tmp_path: Path) -> None:
    """The second from a checkpoint that the first one saved."""
    faults, words = ("{what: crash, step: 4}", "{what: crash, step: 7, attempt: 2}"), ("checkpoint.every=3",)
    for _ in range(2):
        with pytest.raises(WorkerFailure):
            train(pool, tmp_path / "run", SKIP, *faults, words=words)
    assert RunRecord(tmp_path / "run").saved_steps[-1] == 6
    check_end(train(pool, tmp_path / "run", words=words), whole)


def test_a_rollback(whole: RunRecord, pool: WorkerPool, tmp_path: Path) -> None:
    words = ("recovery.non_finite_in_a_row=2",)
    bad = [f"{{what: non_finite, step: {step}}}" for step in (6, 7)]
    check_end(train(pool, tmp_path / "run", SKIP, *bad, words=words), whole)
