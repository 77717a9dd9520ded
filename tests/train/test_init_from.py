"""`model.init_from=RUN`: another run's weights, in any layout, and nothing else of it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from harness.run_record import RunRecord
from harness.torchrun import alone


def test_a_run_starts_where_another_ended(
    trained: Callable[[str], RunRecord], words_of: Callable[[str], tuple[str, ...]], tmp_path: Path
) -> None:
    """Two FSDP ranks' checkpoint into one process, which takes a step of no length: the held-out loss stays."""
    donor = trained("fsdp fp64")
    still = ("optim.lr=0", "model.moe.bias_update_rate=0", "train.steps=1")
    done = alone(*words_of("single fp64"), *still, f"model.init_from={donor.folder}", f"run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    (row,) = RunRecord(tmp_path / "run").rows
    assert row["eval/loss"] == pytest.approx(donor.column("eval/loss")[-1], rel=0, abs=1e-12)
    assert row["train/step"] == 1
    assert row["train/tokens"] == donor.column("train/tokens")[0]
    assert row["train/loss"] < donor.column("train/loss")[0] - 1  # the same first batch, read by a trained model
