"""model.expert_backend=fused and triton on a GPU: beside the loop in float64, and nobody waits for them."""

from typing import Any

import pytest
import torch
from harness.routed_step import model_on, step

from models.config import ExpertBackend, MoEConfig, RowBackend
from models.experts import RoutedExperts, choose_backend
from models.triton_here import hopper_lacks
from parallel.config import Recompute
from parallel.recompute import recompute_parts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
HOPPER = torch.cuda.is_available() and not hopper_lacks(torch.device("cuda"))
NEEDS_HOPPER = pytest.mark.skipif(not HOPPER, reason="needs a GPU of compute capability 9.0")
OURS = [ExpertBackend.fused, pytest.param(ExpertBackend.triton, marks=NEEDS_HOPPER)]


def test_experts_are_the_loop() -> None:
    from harness.kernels_beside_experts import main  # Triton is not everywhere that tests are collected

    main("cuda")


@NEEDS_HOPPER
def test_products_are_those_of_each_slot() -> None:
    from harness.kernels_beside_products import main

    main("cuda")


def test_auto_knows_the_gpu() -> None:
    rows_ND = torch.empty(3, 128, device="cuda", dtype=torch.bfloat16)
    assert choose_backend(ExpertBackend.auto, rows_ND, 64) is ExpertBackend.fused
    assert choose_backend(ExpertBackend.auto, rows_ND, 64, whole_backward=False) is ExpertBackend.grouped_mm
    assert choose_backend(ExpertBackend.auto, rows_ND.float(), 64) is ExpertBackend.loop


@pytest.mark.parametrize("backend", OURS)
def test_nobody_waits_for_the_device(backend: ExpertBackend) -> None:
    module = RoutedExperts(MoEConfig(n_routed=4, expert_dim=64), 128, 1, tuple(range(4)), backend)
    module = module.cuda().bfloat16()
    for parameter in module.parameters():
        parameter.data.normal_(std=0.1)
    rows_ND = torch.randn(300, 128, device="cuda", dtype=torch.bfloat16).requires_grad_()
    ends_E = torch.tensor([100, 100, 130, 200], device="cuda", dtype=torch.int32)

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
    for backend in (ExpertBackend.grouped_mm, ExpertBackend.fused, *[ExpertBackend.triton] * HOPPER):
        module = RoutedExperts(MoEConfig(n_routed=2, expert_dim=64), 128, 1, (0, 1), backend).cuda().bfloat16()
        rows_ND = torch.empty(0, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        ends_E = torch.zeros(2, device="cuda", dtype=torch.int32)
        module.compute(rows_ND, ends_E, *module.parameters()).sum().backward()
        for parameter in module.parameters():
            assert parameter.grad is not None
            assert parameter.grad.eq(0).all()


@NEEDS_HOPPER
def test_selective_recomputation_keeps_products(monkeypatch: pytest.MonkeyPatch) -> None:
    from models import grouped_product_kernel

    launched = []

    def counted(*args: Any) -> torch.Tensor:
        launched.append(args)
        return product(*args)

    product = grouped_product_kernel.grouped_product
    monkeypatch.setattr(grouped_product_kernel, "grouped_product", counted)
    tokens_BS = torch.randint(0, 128, (4, 96), device="cuda")
    counts = {}
    for what in Recompute:
        model = model_on("cuda", torch.bfloat16, RowBackend.auto, 1, True, ExpertBackend.triton)
        recompute_parts(model, what, shared_in_halves=False)
        launched.clear()
        step(model, tokens_BS)
        counts[what] = len(launched)
    assert counts[Recompute.none] == 2 * 2 * 2, "two layers, two products, forward and gradient of rows"
    assert counts[Recompute.none] == counts[Recompute.selective] < counts[Recompute.full], counts
