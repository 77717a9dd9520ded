"""Engines on two GPUs: NCCL, fused AdamW, and Accelerate's FSDP2, which its CPU path never runs."""

import json
import os
from dataclasses import replace

import pytest
import torch
from gpu.engines_on_gpus import LAYOUT, PRECISIONS, STRATEGIES
from harness.layout_run import FP32, run_layout
from harness.torchrun import REPOSITORY, torchrun
from harness.worker_pool import WorkerPool

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


@pytest.fixture(scope="module")
def told() -> dict[tuple[str, str], dict[str, list[float]]]:
    """Of every engine and precision: losses, evaluations and gradient norms."""
    path = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])))
    done = torchrun(2, module="gpu.engines_on_gpus", env={"PYTHONPATH": path}, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {(row["engine"], row["precision"]): row for row in rows}


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_engine_on_two_gpus_equals_the_cpu(name: str, told: dict, pool: WorkerPool) -> None:
    """float32 to 1e-5, bfloat16 near it."""
    expected = pool.run(1, run_layout, replace(LAYOUT, precision=FP32, micro_batch_size=4))[0]
    exact, rough = (told[name, precision] for precision in PRECISIONS)
    assert exact["losses"] == pytest.approx(expected.losses, abs=1e-5)
    assert exact["evals"] == pytest.approx(expected.evals, abs=1e-5)
    assert exact["grad_norms"] == pytest.approx(expected.grad_norms, rel=1e-4)
    assert rough["losses"] != exact["losses"]
    assert rough["losses"] == pytest.approx(expected.losses, abs=5e-2)
