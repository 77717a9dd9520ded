"""A step that is not finite, on GPUs: left out by the fused kernel, and nobody waits to learn of it."""

import json
from pathlib import Path

import pytest
import torch
from harness.torchrun import torchrun
from torch import nn

from parallel.update import not_finite, step_unless
from train.config import OptimConfig
from train.late_number import LateNumber
from train.optimizer import build_optimizer

pytestmark = pytest.mark.gpu
TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
JOB = ("model=tiny", "train.steps=8", "train.log_every=1", "train.eval_sequences=0", "logging=off")
POLICY = ("checkpoint.every=2", "recovery.non_finite_in_a_row=2")
SPOILT = (3, 5, 6)
"""Steps. One is skipped; after two in a row it goes back to step 4."""


def losses(nproc: int, folder: Path, *words: str) -> list[float]:
    # By the rank whose loss is told: in a pipeline the last one, of ranks that see the same tokens the first.
    rank = 0 if "strategy=tp" in words else nproc - 1
    faults = ", ".join(f"{{what: non_finite, rank: {rank}, step: {step}}}" for step in SPOILT)
    done = torchrun(nproc, *JOB, *POLICY, *words, f"faults.inject=[{faults}]", f"run.dir={folder}", timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "train/loss" in row]  # the last one has the books alone
    assert [row["train/step"] for row in rows] == [1, 2, 3, 4, 5, 6, 5, 6, 7, 8]
    return [float(row["train/loss"]) for row in rows]


@pytest.fixture(scope="module")
def cpu_losses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    return {
        precision: losses(
            1, tmp_path_factory.mktemp("cpu"), "strategy=single", f"precision={precision}", "train.device=cpu"
        )
        for precision in ("fp64", "fp32")
    }


def test_one_gpu(cpu_losses: dict[str, list[float]], tmp_path: Path) -> None:
    got = losses(1, tmp_path, "strategy=single", "precision=fp64")
    assert got == pytest.approx(cpu_losses["fp64"], abs=1e-9, nan_ok=True)


@TWO
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero1", "tp", "ep", "pp"])
def test_two_gpus(strategy: str, cpu_losses: dict[str, list[float]], tmp_path: Path) -> None:
    got = losses(2, tmp_path, f"strategy={strategy}", "precision=fp64", "recovery.check_replicas_every=1")
    assert got == pytest.approx(cpu_losses["fp64"], abs=1e-9, nan_ok=True)


@TWO
@pytest.mark.parametrize("strategy", ["accelerate_ddp", "accelerate_fsdp"])
def test_accelerate_on_two_gpus(strategy: str, cpu_losses: dict[str, list[float]], tmp_path: Path) -> None:
    got = losses(2, tmp_path, f"strategy={strategy}", "precision=fp64", "recovery.check_replicas_every=1")
    assert got == pytest.approx(cpu_losses["fp64"], abs=1e-9, nan_ok=True)


@TWO
@pytest.mark.parametrize("strategy", ["deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3"])
def test_deepspeed_on_two_gpus(strategy: str, cpu_losses: dict[str, list[float]], tmp_path: Path) -> None:
    got = losses(2, tmp_path, f"strategy={strategy}", "precision=fp32")
    assert got == pytest.approx(cpu_losses["fp32"], abs=1e-3, nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fused_kernel_leaves_all_as_it_was_and_nobody_waits(dtype: torch.dtype) -> None:
    parameters = [nn.Parameter(torch.randn(n, 7, device="cuda", dtype=dtype)) for n in (5, 300)]
    parameters.append(nn.Parameter(torch.randn(9, device="cuda", dtype=dtype)))
    optimizer = build_optimizer(parameters, OptimConfig(lr=0.1))
    losses_ = torch.zeros(2, dtype=torch.float64, device="cuda")

    def state() -> list[torch.Tensor]:
        moments = [t for p in parameters for t in optimizer.state[p].values()]
        return [t.detach().clone() for t in (*parameters, *moments)]

    def step(gradient: float) -> LateNumber:
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, gradient)
        norm = torch.stack([p.grad.double().norm() for p in parameters]).norm()
        left_out = not_finite(norm, losses_)
        step_unless(left_out, optimizer)
        return LateNumber(left_out)

    assert not step(0.5).read()
    before = state()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        bad = step(float("nan"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert bad.read()
    assert all(torch.equal(a, b) for a, b in zip(state(), before, strict=True))
    assert not step(0.5).read()
    assert not any(torch.equal(a, b) for a, b in zip(state(), before, strict=True))
