"""precision.matmul=fp8: products of rows scaled to e4m3, within what three bits of mantissa allow."""

from typing import Any

import pytest
import torch
from torch import Tensor

from models import fp8_linear as fp8
from models.config import AttentionConfig, AttentionKind, ConfigError, ModelConfig
from models.fp8_linear import (
    check_fp8_sizes,
    multiply_in_fp8,
    quantise_rows,
    reference_product,
    scaled_product,
)
from models.layers import Linear
from models.transformer import Transformer

BF16_ROUNDING = 2.0**-8


def rows(n_rows: int, width: int, seed: int) -> Tensor:
    """bf16; as different in scale as rows come, one of them zeros, one with a value far above the rest."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n_rows, width, generator=generator) * torch.logspace(-6, 3, n_rows).unsqueeze(1)
    x[1] = 0.0
    x[2, 5] = 1e4
    return x.to(torch.bfloat16)


def error_allowed(x: Tensor) -> Tensor:
    """Half a step of e4m3, float64: 2⁻⁴ of a value, or where it is subnormal 2⁻¹⁰ of its row's scale."""
    x = x.double()
    scales = x.abs().amax(-1, keepdim=True) / 448
    return torch.maximum(x.abs() * 2.0**-4, scales * 2.0**-10) * (1 + 1e-6) + 2.0**-110


def product_error_allowed(a: Tensor, b: Tensor) -> Tensor:
    """Of a bᵀ, when each factor is off by what is allowed and the result is rounded to bf16."""
    ea, eb = error_allowed(a), error_allowed(b)
    a, b = a.double().abs(), b.double().abs()
    off = ea @ b.T + a @ eb.T + ea @ eb.T
    return off + BF16_ROUNDING * (1 + 1e-3) * (a @ b.T + off)


def test_rows_are_off_by_half_a_step() -> None:
    x = rows(16, 64, seed=1)
    quantised = quantise_rows(x)
    assert quantised.values_MK.dtype is torch.float8_e4m3fn
    assert quantised.scales_M1.dtype is torch.float32
    error = (quantised.dequantised().double() - x.double()).abs()
    assert (error <= error_allowed(x)).all()
    assert error.max() > 0
    assert (quantised.values_MK.float().abs().amax(-1)[torch.arange(16) != 1] == 448).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_largest_values_saturate_and_zeros_stay(dtype: torch.dtype) -> None:
    x = torch.tensor([[0.0, 0.0], [torch.finfo(dtype).max / 2, 1.0], [torch.finfo(dtype).tiny, 0.0]], dtype=dtype)
    quantised = quantise_rows(x)
    assert quantised.values_MK[0].float().tolist() == [0.0, 0.0]
    assert quantised.values_MK[1].float().tolist() == [448.0, 0.0]
    assert quantised.dequantised().isfinite().all()


def test_products_and_gradients_are_off_by_what_e4m3_allows() -> None:
    x, weight, grad = rows(48, 64, seed=1), rows(32, 64, seed=2), rows(48, 32, seed=3)
    x.requires_grad_()
    weight.requires_grad_()
    y = fp8.fp8_linear(x, weight, None)
    grad_x, grad_weight = torch.autograd.grad(y, (x, weight), grad)
    x, weight = x.detach(), weight.detach()
    of_columns = weight.T.contiguous()
    for ours, exact, allowed in (
        (y, x.double() @ weight.double().T, product_error_allowed(x, weight)),
        (grad_x, grad.double() @ weight.double(), product_error_allowed(grad, of_columns)),
    ):
        error = (ours.double() - exact).abs()
        assert (error <= allowed).all()
        assert error.max() > 0.01 * exact.abs().mean(), "nothing was rounded"
    assert torch.equal(grad_weight, grad.T @ x), "the weight gradient is bf16's"


def test_ordinary_products_are_off_by_4_percent() -> None:
    generator = torch.Generator().manual_seed(5)
    x, weight = (torch.randn(n, 2048, generator=generator).to(torch.bfloat16) for n in (64, 96))
    exact = x.double() @ weight.double().T
    error = fp8.fp8_linear(x, weight, None).double() - exact
    # A value is off by 2⁻⁴ / √3 of its binade's width, over a binade, in both factors: 0.026 √2.
    assert 0.03 < (error.square().mean() / exact.square().mean()).sqrt() < 0.045


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_not_finite_stays_so_in_its_row(bad: float) -> None:
    x, weight = rows(16, 32, seed=1), rows(16, 32, seed=2)
    whole = fp8.fp8_linear(x, weight, None)
    x[3, 7] = bad
    spoilt = fp8.fp8_linear(x, weight, None)
    others = torch.arange(16) != 3
    assert not spoilt[3].isfinite().any()
    assert torch.equal(spoilt[others], whole[others])


def test_torchs_kernel_multiplies_the_same_values() -> None:
    a, b = quantise_rows(rows(48, 64, seed=1)), quantise_rows(rows(32, 64, seed=2).T.contiguous().T)
    ours, reference = scaled_product(a, b, torch.bfloat16), reference_product(a, b, torch.float64)
    terms = a.dequantised().double().abs() @ b.dequantised().double().abs().T
    assert ((ours.double() - reference).abs() <= BF16_ROUNDING * (1 + 1e-3) * reference.abs() + 2.0**-20 * terms).all()


@pytest.mark.parametrize("by_kernel", [False, True])
def test_it_compiles_into_one_graph(by_kernel: bool, monkeypatch: Any) -> None:
    if by_kernel:  # as on a GPU: what the weight's columns are quantised to must not be a view of its rows
        monkeypatch.setattr(fp8, "product", scaled_product)
    torch._dynamo.reset()
    dtype = torch.bfloat16 if by_kernel else torch.float64

    def layer(x: Tensor, norm: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return fp8.fp8_linear(torch.nn.functional.rms_norm(x, norm.shape, norm), weight, bias)

    results = []
    for function in (layer, torch.compile(layer, fullgraph=True)):
        generator = torch.Generator().manual_seed(5)
        inputs = [torch.randn(*shape, generator=generator) for shape in ((2, 16, 64), (64,), (48, 64), (48,))]
        inputs = [tensor.to(dtype).requires_grad_() for tensor in inputs]
        y = function(*inputs)
        results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    tolerance = 0.05 if by_kernel else 1e-12
    for eager, compiled in zip(*results, strict=True):
        assert compiled.shape == eager.shape
        assert (compiled - eager).norm() <= tolerance * eager.norm()


def test_projections_and_feed_forwards_multiply_so_and_nothing_else() -> None:
    a = AttentionConfig(kind=AttentionKind.mla, q_lora_rank=16, kv_lora_rank=16, qk_nope_dim=16)
    for attention in (AttentionConfig(), a):
        model = Transformer(ModelConfig(n_layers=2, attention=attention), torch.float32)
        multiply_in_fp8(model)
        linears = {name: m for name, m in model.named_modules() if isinstance(m, Linear)}
        others = {name for name, linear in linears.items() if linear.multiply is not fp8.fp8_linear}
        assert others == {"layers.1.attention.router.gate"}


def test_sizes_that_are_no_multiples_of_16_are_refused() -> None:
    check_fp8_sizes(ModelConfig())
    with pytest.raises(ConfigError, match=r"layers\.0\.experts\.shared\.gate\.weight is 250 × 128: change these"):
        check_fp8_sizes(ModelConfig(dense_dim=250))
