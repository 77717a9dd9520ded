"""model.expert_backend=fused on a GPU: beside the loop in float64, and nobody waits for it."""

import pytest
import torch

from models.config import ExpertBackend, MoEConfig
from models.experts import RoutedExperts, choose_backend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_fused_is_the_loop() -> None:
    from harness.kernels_beside_experts import main  # Triton is not everywhere that tests are collected

    main("cuda")


def test_nobody_waits_for_the_device() -> None:
    module = RoutedExperts(MoEConfig(n_routed=4, expert_dim=64), 128, 1, tuple(range(4)), ExpertBackend.auto)
    module = module.cuda().bfloat16()
    for parameter in module.parameters():
        parameter.data.normal_(std=0.1)
    rows_ND = torch.randn(300, 128, device="cuda", dtype=torch.bfloat16).requires_grad_()
    ends_E = torch.tensor([100, 100, 130, 200], device="cuda", dtype=torch.int32)
    assert choose_backend(ExpertBackend.auto, rows_ND, 64) is ExpertBackend.fused

    def step() -> None:
        module.compute(rows_ND, ends_E, *module.parameters()).backward(torch.ones_like(rows_ND))

    step()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_an_expert_parallel_rank_without_rows() -> None:
    """Not one row, not even a bound: gradients of weights are zeros."""
    for backend in (ExpertBackend.grouped_mm, ExpertBackend.fused):
        module = RoutedExperts(MoEConfig(n_routed=2, expert_dim=64), 128, 1, (0, 1), backend).cuda().bfloat16()
        rows_ND = torch.empty(0, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        ends_E = torch.zeros(2, device="cuda", dtype=torch.int32)
        module.compute(rows_ND, ends_E, *module.parameters()).sum().backward()
        for parameter in module.parameters():
            assert parameter.grad is not None
            assert parameter.grad.eq(0).all()
