"""A job that is killed and started again is the job that never was, bit for bit; under another layout, to rounding."""

import shutil
from collections.abc import Callable
from functools import cache

import pytest
import torch
from harness.job_in_pool import job_in_pool
from harness.run_record import RunRecord, reproducible
from harness.torchrun import start_torchrun, torchrun
from harness.worker_pool import WorkerPool
from metrics.wandb_file import read_wandb_file, wandb_files

Job = Callable[[str], RunRecord]
BOTH = pytest.mark.parametrize("name", ["ddp fp32", "fsdp fp64"])


@pytest.fixture(scope="module")
def killed(words_of: Callable[[str], tuple[str, ...]], tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job of two ranks, killed whole after step 12 of 20: a copy of its folder, which lies beside it."""

    @cache
    def kill(name: str) -> RunRecord:
        record = RunRecord(tmp_path_factory.mktemp("killed") / "run")
        with start_torchrun(2, *words_of(name), f"run.dir={record.folder}") as launch:
            launch.wait_for(lambda _: record.last_step >= 12)
            launch.kill_all()
        assert not (record.folder / "summary.json").exists(), "it had ended"
        assert record.saved_steps[-1] in (10, 15)  # 15 if the kill came late
        return RunRecord(shutil.copytree(record.folder, record.folder.with_name("as_killed"), symlinks=True))

    return kill


@pytest.fixture(scope="module")
def resumed(killed: Job, words_of: Callable[[str], tuple[str, ...]], pool: WorkerPool) -> Job:
    """The same job after the same words were typed again; the one with wandb by torchrun."""

    @cache
    def resume(name: str) -> RunRecord:
        record = RunRecord(killed(name).folder.with_name("run"))
        words = (*words_of(name), f"run.dir={record.folder}")
        done = job_in_pool(pool, 2, *words) if "logging=off" in words else torchrun(2, *words)
        assert done.returncode == 0, done.stderr
        assert f"resuming after step {killed(name).saved_steps[-1]}\n" in done.stdout
        return record

    return resume


@BOTH
def test_every_row_is_bit_equal(name: str, trained: Job, killed: Job, resumed: Job) -> None:
    """Losses, gradient norms, rates, tokens, expert loads: those before the kill, and those after it."""
    expected = [reproducible(row) for row in trained(name).rows]
    rows = [reproducible(row) for row in resumed(name).rows]
    before = len(killed(name).rows)
    assert rows[:before] == expected[:before]
    assert rows[before:] == expected[killed(name).saved_steps[-1] :]


@BOTH
def test_the_last_checkpoint_is_bit_equal(name: str, trained: Job, resumed: Job) -> None:
    expected, got = trained(name).tensors(20), resumed(name).tensors(20)
    assert got.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(got[key], tensor), key
    # It holds all that a resume could forget.
    for part in ("model.embedding", "expert_bias_E", "optimizer.exp_avg.", "optimizer.exp_avg_sq."):
        assert any(part in key and tensor.any() for key, tensor in expected.items()), part


def test_another_layout_goes_on_to_rounding(
    trained: Job, killed: Job, words_of: Callable[[str], tuple[str, ...]], pool: WorkerPool
) -> None:
    """The shards of two FSDP ranks, taken up by DDP in other micro-batches."""
    folder = shutil.copytree(killed("fsdp fp64").folder, killed("fsdp fp64").folder.with_name("as_ddp"), symlinks=True)
    done = job_in_pool(pool, 2, *words_of("ddp fp64"), f"run.dir={folder}")
    assert done.returncode == 0, done.stderr
    first = killed("fsdp fp64").saved_steps[-1]
    expected = trained("fsdp fp64").column("train/loss")[first:]
    got = RunRecord(folder).column("train/loss")[-len(expected) :]
    assert got == pytest.approx(expected, rel=0, abs=1e-12)
    assert got != expected  # it was another layout


def test_wandb_sees_one_run_of_two_attempts(killed: Job, resumed: Job) -> None:
    # Of the first one little more than the name: wandb writes behind, and had not come to it when it was killed.
    first, second = wandb_files(resumed("ddp fp32").folder)
    assert first.name == second.name
    run = read_wandb_file(second)
    assert second.name == f"run-{run.run_id}.wandb"
    assert run.history == resumed("ddp fp32").rows[len(killed("ddp fp32").rows) :]
    assert run.config == resumed("ddp fp32").config
    assert run.exit_code == 0
