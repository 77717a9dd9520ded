"""A job in a process that goes on afterwards, as in a notebook, leaves nothing there that could kill it."""

from pathlib import Path

import psutil
from harness.train_alone import train_alone
from harness.worker_pool import WorkerPool

JOB = ("model=tiny", "train.device=cpu", "strategy=single", "train.steps=1", "train.eval_sequences=0", "logging=off")


def watchers_after(folder: Path) -> list[str]:
    """What a job leaves running of its own, by its command line."""
    train_alone(*JOB, "checkpoint=off", f"run.dir={folder}")
    children = psutil.Process().children(recursive=True)
    return [" ".join(child.cmdline()) for child in children if "train.faults.watch" in child.cmdline()]


def test_the_watcher_leaves_with_the_job(pool: WorkerPool, tmp_path: Path) -> None:
    assert pool.run(1, watchers_after, tmp_path / "run") == [[]]
    assert (tmp_path / "run" / "ledger" / "attempt-0001" / "beat-00000").exists()
