"""optim.one_pass on a GPU: its kernel is the update, and nobody waits for it."""

import pytest
import torch
from torch import nn

from parallel.halves import Halves
from train.config import OptimConfig
from train.optimizer import build_optimizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_the_kernel_is_the_update() -> None:
    from harness.kernel_beside_update import main  # Triton is not everywhere that tests are collected

    main("cuda")


def test_the_kernel_is_the_addition() -> None:
    from harness.kernel_beside_addition import main

    main("cuda")


def test_nobody_waits_for_the_device() -> None:
    parameter = nn.Parameter(torch.randn(4096, 512, device="cuda"))
    optimizer = build_optimizer([parameter], OptimConfig(one_pass=True))
    left_out, clip = torch.tensor(False, device="cuda"), torch.tensor(0.5, dtype=torch.float64, device="cuda")
    parameter.grad = torch.randn_like(parameter)
    optimizer.step_scaled(clip, left_out)  # type: ignore[attr-defined]  # compiles it
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            optimizer.step_scaled(clip, left_out)  # type: ignore[attr-defined]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert optimizer.state[parameter]["step"].item() == 4


def test_halves_give_memory_back_and_nobody_waits() -> None:
    n = 1 << 22
    master, copy = nn.Parameter(torch.randn(n, device="cuda")), torch.empty(n, dtype=torch.bfloat16, device="cuda")
    before, held = master.detach().clone(), torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        halves = Halves({master: copy})
        in_halves = torch.cuda.memory_allocated()
        halves.join()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (in_halves - held, torch.cuda.memory_allocated() - held) == (-2 * n, 0)
    assert torch.equal(master, before)
