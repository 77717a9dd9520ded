"""Every fast path at once: as near to float32 as plain bfloat16 is, and through a step that is left out and a resume.

bfloat16 rounds, so the yardstick is what the plain path is off.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from harness.torchrun import torchrun

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
JOB = ("model=tiny", "train.steps=12", "train.log_every=1", "train.eval_sequences=4", "logging=off")
PLAIN = ("precision=bf16", "model.expert_backend=grouped_mm", "model.row_backend=torch", "model.loss_backend=torch")
FAST = (
    "precision=bf16",
    "strategy=zero1",
    "optim.one_pass=true",
    "strategy.compile=true",
    "model.loss_chunk_size=1024",
)
WHOLE = ("optim.halves=true", "strategy.cuda_graph=true", "model.expert_backend=triton", "optim.moments=bfloat16")
"""With FAST, `moments` of benchmarks/one_gpu.yaml."""
GATHERED = ("strategy.ep=2", "strategy.dispatcher=all_gather", "strategy.rows=static")
TAKEN = ("strategy.ep=2", "strategy.dispatcher=symmetric_memory", "strategy.rows=static")
LAYOUTS = {
    "one": (1, ()),
    "one_accumulated": (1, ("train.micro_batch_size=2",)),
    "one_recompute": (1, ("strategy.recompute=full",)),
    "one_moments": (1, ("optim.moments=bfloat16",)),
    "one_halves": (1, ("optim.halves=true",)),
    "one_graph_triton": (1, WHOLE[:3]),
    "one_whole": (1, WHOLE),
    "one_whole_accumulated": (1, (*WHOLE, "train.micro_batch_size=2")),
    "replicas": (2, ()),
    "all_to_all": (2, ("strategy.ep=2",)),
    "all_to_all_recompute": (2, ("strategy.ep=2", "strategy.recompute=full")),
    "all_to_all_side_by_side": (2, ("strategy.ep=2", "overlap.forward_backward=true", "train.micro_batch_size=1")),
    "all_gather": (2, GATHERED),
    "all_gather_halves": (2, (*GATHERED, "optim.halves=true")),
    "all_gather_hidden": (2, (*GATHERED, "overlap.shared_experts=true")),
    "all_gather_hidden_halves": (2, (*GATHERED, "overlap.shared_experts=true", "optim.halves=true")),
    "symmetric_memory": (2, TAKEN),
    "symmetric_memory_hidden": (2, (*TAKEN, "overlap.shared_experts=true", "train.micro_batch_size=2")),
}


def rows(nproc: int, folder: Path, *words: str) -> list[dict[str, float]]:
    done = torchrun(nproc, *JOB, *words, f"run.dir={folder}", timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in read if "train/loss" in row]  # the last one has the books alone


def numbers(nproc: int, folder: Path, *words: str) -> np.ndarray:
    """Losses and gradient norms, step by step."""
    found = rows(nproc, folder, "checkpoint=off", *words)
    return np.array([[row["train/loss"], row["train/grad_norm"]] for row in found])


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    return numbers(1, tmp_path_factory.mktemp("exact"), "strategy=single", "precision=fp32")


@pytest.fixture(scope="module")
def yardstick(exact: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Root mean squares of what plain bfloat16 is off, of losses and of norms."""
    plain = numbers(1, tmp_path_factory.mktemp("plain"), "strategy=single", *PLAIN)
    off = np.sqrt(np.square(plain - exact).mean(0))
    assert (off > 0).all()
    return off


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[TWO] if nproc == 2 else []) for name, (nproc, _) in LAYOUTS.items()]
)
def test_it_is_as_near_as_plain_bfloat16(name: str, exact: np.ndarray, yardstick: np.ndarray, tmp_path: Path) -> None:
    nproc, words = LAYOUTS[name]
    got = numbers(nproc, tmp_path, *FAST, *words)
    off = np.sqrt(np.square(got - exact).mean(0))
    # Twelve steps are few numbers, and roundings other ones: twice the yardstick is as near.
    assert (off < 2 * yardstick + 1e-4).all(), (off, yardstick)


@pytest.mark.parametrize("more", [(), WHOLE], ids=["fast", "whole"])
def test_a_step_that_is_not_finite_is_left_out(more: tuple[str, ...], tmp_path: Path) -> None:
    spoilt = "faults.inject=[{what: non_finite, rank: 0, step: 4}]"
    found = rows(1, tmp_path, "checkpoint=off", *FAST, *more, spoilt)
    losses = [float(row["train/loss"]) for row in found]  # "NaN" is a string in these rows
    assert [row["train/step"] for row, loss in zip(found, losses, strict=True) if not np.isfinite(loss)] == [4]
    assert losses[4] == pytest.approx(losses[2], abs=0.5)
    assert all(np.isfinite(row["train/grad_norm"]) for row in found[4:])


@pytest.mark.parametrize("more", [(), WHOLE[:1], WHOLE], ids=["fast", "halves", "whole"])
def test_a_job_resumes(more: tuple[str, ...], tmp_path: Path) -> None:
    words = (*FAST, *more, "checkpoint=default", "optim.schedule=constant")
    whole = rows(1, tmp_path / "whole", *words)
    first = rows(1, tmp_path / "parts", *words, "train.steps=6")
    both = rows(1, tmp_path / "parts", *words)
    losses = [[row["train/loss"] for row in some] for some in (whole, first, both)]
    assert losses[2][:6] == losses[1]
    # Kernels of attention's backward add in no fixed order.
    assert losses[2] == pytest.approx(losses[0], abs=5e-3)
