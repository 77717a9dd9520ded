"""precision.matmul=fp8 on a GPU: torch's kernel multiplies what the reference does, in a layer and in one graph."""

from typing import Any

import pytest
import torch
from torch import Tensor

from models import fp8_linear as fp8
from models.fp8_linear import quantise_rows, reference_product, scaled_product

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0),
        reason="needs a CUDA device with float8 products scaled by rows",
    ),
]
BF16_ROUNDING = 2.0**-8
PARTIAL_SUMS = 2.0**-11
"""Of the sum of all terms' sizes: what fast accumulation, of about 14 bits, may lose."""


def random(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    x = torch.randn(*shape, generator=generator, device="cuda")
    return (x * torch.logspace(-4, 2, shape[0], device="cuda").unsqueeze(1)).to(torch.bfloat16)


@pytest.mark.parametrize(("rows", "width", "outputs"), [(4096, 2048, 576), (1000, 512, 4096), (17, 10944, 2048)])
def test_the_kernel_multiplies_the_same_values(rows: int, width: int, outputs: int) -> None:
    weight = random(outputs, width, seed=2)
    for a, b in (
        (quantise_rows(random(rows, width, seed=1)), quantise_rows(weight)),
        (quantise_rows(random(rows, outputs, seed=3)), quantise_rows(weight.t())),
    ):
        reference = reference_product(a, b, torch.float64)
        terms = a.dequantised().double().abs() @ b.dequantised().double().abs().T
        error = (scaled_product(a, b, torch.bfloat16).double() - reference).abs()
        assert (error <= BF16_ROUNDING * (1 + 1e-3) * reference.abs() + PARTIAL_SUMS * terms).all()


@pytest.mark.parametrize("compiled", [False, True])
def test_a_layer_is_the_references(compiled: bool, monkeypatch: Any) -> None:
    """Gradients too; the yardstick is what e4m3 itself costs beside float64."""
    inputs = [random(2048, 2048, seed=1), random(1, 2048, seed=2)[0] * 1e4, random(3072, 2048, seed=3)]
    probe = random(2048, 3072, seed=4)

    def layer(x: Tensor, norm: Tensor, weight: Tensor) -> Tensor:
        return fp8.fp8_linear(torch.nn.functional.rms_norm(x, norm.shape, norm), weight, None)

    def results(function: Any, dtype: torch.dtype) -> list[Tensor]:
        leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs]
        y = function(*leaves)
        return [out.detach().double() for out in (y, *torch.autograd.grad(y, leaves, probe.to(dtype)))]

    ours = results(torch.compile(layer, fullgraph=True) if compiled else layer, torch.bfloat16)
    monkeypatch.setattr(fp8, "product", reference_product)
    reference = results(layer, torch.bfloat16)
    monkeypatch.setattr(fp8, "product", lambda a, b, dtype: a.dequantised() @ b.dequantised().t())
    monkeypatch.setattr(fp8, "quantise_rows", lambda x: fp8.Quantised(x, x.new_ones(len(x), 1)))
    exact = results(layer, torch.float64)
    for o, r, e in zip(ours, reference, exact, strict=True):
        assert o.isfinite().all()
        assert (o - e).norm() <= 1.1 * (r - e).norm() + 1e-3 * e.norm()


def test_rows_that_are_not_finite_stay_so() -> None:
    x, weight = random(64, 256, seed=1), random(128, 256, seed=2)
    x[0] = 0.0
    for row, bad in ((1, float("inf")), (2, float("nan"))):
        x[row, 3] = bad
    for function in (fp8.fp8_linear, torch.compile(fp8.fp8_linear, fullgraph=True)):
        y = function(x, weight, None)
        assert (y[0] == 0).all()
        assert not y[1:3].isfinite().any()
        assert y[3:].isfinite().all()
