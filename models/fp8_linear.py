"""y = x Wᵀ with products in float8 (e4m3), each row scaled by its own largest value.

    y  = x  Wᵀ     e4m3: rows of x, rows of W                  a row of x is a token
    dx = dy W      e4m3: rows of dy, columns of W
    dW = dyᵀ x     as it was: bfloat16

The weight gradient stays in bfloat16: its rows would be scaled by the largest of a whole micro-batch, so that what a
token teaches would depend on its neighbours and on the layout; both of its factors would have to be quantised again,
transposed; and it is the product that Adam's small steps are made of. (torchao's rowwise_with_gw_hp chooses the same.)

A scale is a float32 by which the row was divided, so that its largest value is 448, the last of e4m3. With three bits
of mantissa a value is off by 2⁻⁴ of itself at most, and by 2⁻¹⁰ of the scale where that is more.

Where it runs, bfloat16 on a GPU, torch multiplies float8 as it is. Elsewhere the same float8 values are multiplied as
what they stand for, in at least float32: no faster, but the same network, for tests and for a CPU.

M rows (tokens), K columns, N rows of the weight.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.attention import Attention
from models.config import ConfigError, ModelConfig
from models.feed_forward import FeedForward
from models.layers import Linear, accumulation_dtype
from models.parameter_shapes import parameter_shapes

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
SMALLEST_SCALE = 2.0**-100
"""A row of zeros has to be divided by something; 1 / it and 448 times it are normal float32 numbers."""
MULTIPLE = 16
"""Of both sizes of a weight: rows of float8 begin at multiples of 16 bytes."""


class Quantised(NamedTuple):
    """A matrix, by rows."""

    values_MK: Tensor
    """float8_e4m3fn, contiguous."""
    scales_M1: Tensor
    """What each row was divided by, at least float32."""

    def dequantised(self) -> Tensor:
        """What it stands for, [M, K], in the scales' dtype."""
        return self.values_MK.to(self.scales_M1.dtype) * self.scales_M1


def quantise_rows(x_MK: Tensor) -> Quantised:
    """`x_MK` to float8, to nearest. A row that holds an infinity or no number has a scale that is none either: what is
    multiplied by it is not finite, and is seen."""
    wide_MK = x_MK.to(accumulation_dtype(x_MK.dtype))
    scales_M1 = (wide_MK.abs().amax(-1, keepdim=True) / LARGEST).clamp(min=SMALLEST_SCALE)
    # 448.00003 must not become a NaN, which e4m3 has in place of infinity. A NaN passes the clamp.
    values_MK = (wide_MK / scales_M1).clamp(-LARGEST, LARGEST).to(FLOAT8)
    return Quantised(values_MK.contiguous(), scales_M1)


def product(a: Quantised, b: Quantised, dtype: torch.dtype) -> Tensor:
    """a bᵀ, [M, K] and [N, K] to [M, N] in `dtype`."""
    runs = a.values_MK.is_cuda and dtype is torch.bfloat16
    return scaled_product(a, b, dtype) if runs else reference_product(a, b, dtype)


def scaled_product(a: Quantised, b: Quantised, dtype: torch.dtype) -> Tensor:
    """By torch's own kernel."""
    # Private, and not in parallel/torch_internals.py, which models do not import. Its public face since torch 2.10,
    # torch.nn.functional.scaled_mm, cannot be compiled into one graph (pytorch issue 180604).
    # Fast: partial sums keep about 14 bits, against 4 of what they are sums of, and the kernels are made for it.
    return torch._scaled_mm(
        a.values_MK, b.values_MK.t(), a.scales_M1, b.scales_M1.t(), out_dtype=dtype, use_fast_accum=True
    )


def reference_product(a: Quantised, b: Quantised, dtype: torch.dtype) -> Tensor:
    """By a product of what `a` and `b` stand for, in at least float32."""
    return (a.dequantised() @ b.dequantised().t()).to(dtype)


def fp8_linear(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    """torch.nn.functional.linear, [..., K] to [..., N], in the dtype of `x` and of the weight."""
    y: Tensor = _Product.apply(x.flatten(0, -2), weight_NK).unflatten(0, x.shape[:-1])
    return y if bias_N is None else y + bias_N


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, weight_NK: Tensor) -> Tensor:
        ctx.save_for_backward(x_MK, weight_NK)
        return product(quantise_rows(x_MK), quantise_rows(weight_NK), x_MK.dtype)

    @staticmethod
    def backward(ctx: Any, grad_MN: Tensor) -> tuple[Tensor, Tensor]:
        x_MK, weight_NK = ctx.saved_tensors
        grad_x_MK = product(quantise_rows(grad_MN), quantise_rows(weight_NK.t()), x_MK.dtype)
        return grad_x_MK, grad_MN.t() @ x_MK


def multiply_in_fp8(model: nn.Module) -> None:
    """Have attention's projections, dense feed-forwards and shared experts multiply in float8, in place.

    Not the router, whose choices hang on small differences; not embedding, norms and head, where range and the loss
    come from; not routed experts, whose groups of rows would each have to begin at a multiple of 16.
    """
    for module in model.modules():
        if isinstance(module, Attention | FeedForward):
            for part in module.children():
                if isinstance(part, Linear):
                    part.multiply = fp8_linear


def check_fp8_sizes(model: ModelConfig) -> None:
    """Refuse weights that cannot be multiplied in float8.

    Raises:
        ConfigError: naming the weight.
    """
    for name, shape in parameter_shapes(model).items():
        ours = ".attention.mixer." in name or ".experts.shared." in name
        if ours and len(shape) == 2 and any(size % MULTIPLE for size in shape):
            raise ConfigError(
                f"precision.matmul=fp8 takes sizes that are multiples of {MULTIPLE}, and {name} is {shape[0]} × "
                f"{shape[1]}: change these, or set precision.matmul=default"
            )
