"""What data.boundaries says reaches the loss and the attention of a real job."""

from pathlib import Path

import numpy as np
from harness.job_in_pool import job_in_pool
from harness.run_record import RunRecord
from harness.worker_pool import WorkerPool

WORDS = ("model=tiny", "strategy=single", "train.device=cpu", "train.steps=1", "logging=off", "checkpoint=off")


def test_each_boundary_is_another_loss(pool: WorkerPool, tmp_path: Path) -> None:
    """Documents of one repeated id, about 12 tokens each: only the first of them is hard to foretell."""
    generator = np.random.default_rng(0)
    documents = [np.append(np.full(generator.integers(8, 16), generator.integers(1, 255)), 0) for _ in range(4000)]
    np.save(tmp_path / "tokens.npy", np.concatenate(documents).astype(np.uint8))
    data = ("data=tokens", f"data.path={tmp_path / 'tokens.npy'}", "data.end_of_document=0")
    losses = {}
    for boundaries in ("none", "loss", "attention"):
        folder = tmp_path / boundaries
        done = job_in_pool(pool, 1, *WORDS, *data, f"data.boundaries={boundaries}", f"run.dir={folder}")
        assert done.returncode == 0, done.stderr
        row = RunRecord(folder).step_rows[-1]
        losses[boundaries] = (row["train/loss"], row["eval/loss"])
    for i in range(2):
        assert len({loss[i] for loss in losses.values()}) == 3, losses
