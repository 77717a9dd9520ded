"""What this machine can do at best, measured beside the jobs: what a roofline is drawn from.

`python -m launch.bench.ceilings cuda FILE` measures one device and writes FILE; bus.py measures what lies between them.
In a process of its own, so that its memory is free again when the jobs start. On a CPU the same at small sizes and in
float32, so that the figures are there, and no more is claimed of them.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import sdpa_kernel

from models.attention import KERNELS_BY_SPEED
from train.data.atomic_json import read_json, write_json
from train.run_folder import device_name

WARM_UP, REPEATS, CALLS = 1, 10, 10
"""Batches that are not counted, and that are; calls of a batch."""


@dataclass(frozen=True)
class Ceilings:
    """Rates of one device, medians."""

    device: str
    """Its name."""
    dtype: str
    """Of the products, as precision.compute names it."""
    dense_tflops: float
    """A square matrix product."""
    expert_tflops: float
    """A grouped product, forward and backward."""
    attention_forward_tflops: float
    """Causal attention, the lower triangle counted."""
    attention_tflops: float
    """The same forward and backward, backward counted as twice the forward."""
    copy_gbs: float
    """Bytes read and written, 1e9 a second."""

    @classmethod
    def read(cls, path: Path) -> "Ceilings | None":
        """What was measured; None if nothing was, or by another version."""
        try:
            return cls(**(read_json(path) or {}))
        except TypeError:
            return None


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    dtype: torch.dtype
    matrix: int
    experts: int
    rows: int
    dim: int
    expert_dim: int
    batch: int
    heads: int
    sequence: int
    qk_dim: int
    v_dim: int
    copied: int
    """Bytes."""


# The experts and heads of model=moe_5b, at its 16k tokens a step.
GPU = Sizes(torch.bfloat16, 8192, 64, 98304, 2048, 1408, 4, 16, 4096, 192, 128, 2**30)
CPU = Sizes(torch.float32, 256, 4, 256, 64, 32, 1, 2, 128, 24, 16, 2**20)


def measure(device: torch.device) -> Ceilings:
    """Takes a few seconds of an idle device, and some GiB of its memory."""
    sizes = GPU if device.type == "cuda" else CPU
    forward, both = _attention(sizes, device)
    return Ceilings(
        device=device_name(device),
        dtype=str(sizes.dtype).removeprefix("torch."),
        dense_tflops=_dense(sizes, device),
        expert_tflops=_experts(sizes, device),
        attention_forward_tflops=forward,
        attention_tflops=both,
        copy_gbs=_copy(sizes, device),
    )


def fastest_seconds(function: Callable[[], object], device: torch.device) -> float:
    """Of a call, in the fastest of batches that each end with what they started on `device`. A call drained alone would
    bear the launch, and the way to an idle device and back, which a step pays once for hundreds. The fastest, since a
    ceiling is what can be done: a GPU that does nothing but multiply runs into its power limit, and is slower for it
    than in a step, where other kernels let it cool (medians were passed by a sixth)."""
    seconds = []
    for _ in range(WARM_UP + REPEATS):
        _drain(device)
        start = time.perf_counter()
        for _ in range(CALLS):
            function()
        _drain(device)
        seconds.append((time.perf_counter() - start) / CALLS)
    return min(seconds[WARM_UP:])


def _dense(sizes: Sizes, device: torch.device) -> float:
    a, b = (_random(sizes, device, sizes.matrix, sizes.matrix) for _ in range(2))
    return 2 * sizes.matrix**3 / fastest_seconds(lambda: a @ b, device) / 1e12


def _experts(sizes: Sizes, device: torch.device) -> float:
    rows_ND = _random(sizes, device, sizes.rows, sizes.dim).requires_grad_()
    weights_EFD = _random(sizes, device, sizes.experts, sizes.expert_dim, sizes.dim).requires_grad_()
    gradient_NF = _random(sizes, device, sizes.rows, sizes.expert_dim)
    share = sizes.rows // sizes.experts
    ends_E = torch.arange(share, sizes.rows + 1, share, dtype=torch.int32, device=device)

    def step() -> object:
        out_NF = F.grouped_mm(rows_ND, weights_EFD.transpose(1, 2), offs=ends_E)
        return torch.autograd.grad(out_NF, (rows_ND, weights_EFD), gradient_NF)

    return 6 * sizes.rows * sizes.dim * sizes.expert_dim / fastest_seconds(step, device) / 1e12


def _attention(sizes: Sizes, device: torch.device) -> tuple[float, float]:
    """Forward, and forward and backward."""
    dims = (sizes.qk_dim, sizes.qk_dim, sizes.v_dim)
    q, k, v = (_random(sizes, device, sizes.batch, sizes.heads, sizes.sequence, dim).requires_grad_() for dim in dims)
    gradient = _random(sizes, device, sizes.batch, sizes.heads, sizes.sequence, sizes.v_dim)

    def forward() -> torch.Tensor:
        with sdpa_kernel(KERNELS_BY_SPEED, set_priority=True):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    once = sizes.batch * sizes.heads * sizes.sequence**2 * (sizes.qk_dim + sizes.v_dim)  # 2 · S² / 2
    with torch.no_grad():
        alone = fastest_seconds(forward, device)
    both = fastest_seconds(lambda: torch.autograd.grad(forward(), (q, k, v), gradient), device)
    return once / alone / 1e12, 3 * once / both / 1e12


def _copy(sizes: Sizes, device: torch.device) -> float:
    source = torch.ones(sizes.copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * sizes.copied / fastest_seconds(lambda: target.copy_(source), device) / 1e9


def _random(sizes: Sizes, device: torch.device, *shape: int) -> torch.Tensor:
    """Numbers, and not zeros: a GPU multiplies those faster."""
    return torch.randn(*shape, dtype=sizes.dtype, device=device)


def _drain(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


if __name__ == "__main__":
    write_json(
        Path(sys.argv[2]),
        asdict(measure(torch.device(sys.argv[1], 0) if sys.argv[1] == "cuda" else torch.device("cpu"))),
    )
