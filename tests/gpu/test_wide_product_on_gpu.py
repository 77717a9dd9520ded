"""The router's logits and sums of products on a GPU: bfloat16's products, left in float32."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.wide_product import add_product_, wide_linear

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SIZES = [(4096, 2048, 64), (1000, 264, 24), (1, 8, 8)]
"""Tokens, width, experts."""


def widened(x: Tensor, weight: Tensor) -> Tensor:
    """As it is elsewhere: products of float32 operands."""
    return F.linear(x.float(), weight.float())


def results(product, n_tokens: int, dim: int, n_experts: int, dtype: torch.dtype) -> list[Tensor]:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(dim)
    x, weight = (torch.randn(n, dim, generator=generator).bfloat16().cuda() for n in (n_tokens, n_experts))
    x, weight = x.to(dtype).requires_grad_(), (weight * dim**-0.5).to(dtype).requires_grad_()
    grad = torch.randn(n_tokens, n_experts, generator=generator).cuda()
    y = product(x, weight)
    return [y.detach().double(), *(g.double() for g in torch.autograd.grad(y, (x, weight), grad.to(y.dtype)))]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_widened_operands_product(size: tuple[int, int, int], compiled: bool) -> None:
    product = torch.compile(wide_linear, fullgraph=True, dynamic=False) if compiled else wide_linear
    exact = results(wide_linear, *size, torch.float64)
    plain, ours = (results(of, *size, torch.bfloat16) for of in (widened, product))
    # Of all float32 sums: a hundredth of one rounding to bfloat16, whatever order they are made in.
    assert (ours[0] - exact[0]).norm() <= (plain[0] - exact[0]).norm() + 2e-5 * exact[0].norm()
    for e, p, o in zip(exact[1:], plain[1:], ours[1:], strict=True):
        assert (o - e).norm() <= 1.1 * (p - e).norm() + 1e-5 * e.norm()


def test_sums_of_products_are_not_rounded() -> None:
    a, b = torch.randn(512, 256, device="cuda").bfloat16(), torch.randn(256, 384, device="cuda").bfloat16()
    total = torch.full((512, 384), float("nan"), device="cuda")
    for i in range(3):
        add_product_(total, a.T.contiguous().T, b, first=i == 0)
    exact = 3 * (a.double() @ b.double())
    assert (total.double() - exact).norm() <= 1e-5 * exact.norm()  # rounded to bfloat16 it would be 2e-3
