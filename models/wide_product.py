"""Products of bfloat16 matrices that are not rounded to it.

A GPU multiplies bfloat16 with sums in float32 and rounds these as the last thing it does. torch can leave that out
(`out_dtype`) on CUDA alone.

M, N rows and columns of the product, K what is summed over.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers import accumulation_dtype


def stays_wide(x: Tensor) -> bool:
    """Whether the device hands products of it back as they were added up."""
    return x.is_cuda and x.dtype is torch.bfloat16


def add_product_(sum_MN: Tensor, a_MK: Tensor, b_KN: Tensor, first: bool) -> None:
    """Add a @ b to `sum_MN`, in its own dtype, or set it to that where it is the `first` and nothing is there yet."""
    old = 0 if first else 1  # by 0 torch multiplies nothing, not even NaN
    if sum_MN.dtype is a_MK.dtype:
        torch.addmm(sum_MN, a_MK, b_KN, beta=old, out=sum_MN)
    elif stays_wide(a_MK):
        torch.addmm(sum_MN, a_MK, b_KN, out_dtype=sum_MN.dtype, beta=old, out=sum_MN)
    else:
        product_MN = a_MK @ b_KN
        sum_MN.copy_(product_MN) if first else sum_MN.add_(product_MN)


def wide_linear(x: Tensor, weight_NK: Tensor) -> Tensor:
    """x Wᵀ of [..., K] in at least float32, of operands in the same dtype.

    The product of two bfloat16 numbers is exact in float32, so that bfloat16's matrix products, left in float32, are
    those of the widened operands but for the order of sums; a GPU makes them several times as fast.
    """
    if stays_wide(x):
        y_MN: Tensor = _WideLinear.apply(x.flatten(0, -2), weight_NK)
        return y_MN.unflatten(0, x.shape[:-1])
    wide = accumulation_dtype(x.dtype)
    return F.linear(x.to(wide), weight_NK.to(wide))


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two bfloat16 numbers for each float32: together they have at least 16 of its 24 binary digits, one has 8."""
    # Rounded by hand: compiled, a number that goes to bfloat16 and back may stay what it was, and all of `low` be 0.
    high = ((x.view(torch.int32) + 0x8000) & -0x10000).view(torch.float32)
    return high.bfloat16(), (x - high).bfloat16()


class _WideLinear(torch.autograd.Function):
    """Gradients by y are float32, and rounded to bfloat16 would lose what their sums are to keep. In `halves`, both
    products' sums are still exact to 2^-17 of each term; results are bfloat16, as the operands are."""

    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, weight_NK: Tensor) -> Tensor:
        ctx.save_for_backward(x_MK, weight_NK)
        return torch.mm(x_MK, weight_NK.T, out_dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, grad_MN: Tensor) -> tuple[Tensor, Tensor]:
        x_MK, weight_NK = ctx.saved_tensors
        # Side by side, both halves are one product's.
        halves_M2N = torch.cat(halves(grad_MN), dim=1)
        grad_x_MK = halves_M2N @ torch.cat((weight_NK, weight_NK))
        of_halves_2NK = torch.mm(halves_M2N.T, x_MK, out_dtype=torch.float32)
        return grad_x_MK, of_halves_2NK.unflatten(0, (2, -1)).sum(0).to(weight_NK.dtype)
