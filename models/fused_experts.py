"""Routed experts by grouped products with kernels of ours between them (models/swiglu_kernel.py).

    forward    gate, up = rows · gate_upᵀ      h = w · silu(gate) · up                  y = h · downᵀ
    backward   dh = dy · down                  d_gate, d_up, dw, h again, in one pass   d_down = dyᵀ · h
               d_rows = d_gate_up · gate_up    d_gate_up's weight = d_gate_upᵀ · rows

Kept for backward: rows, gate and up. The host waits for nothing. Whose products: models/grouped_products.py.

N rows, E slots, D model width, F expert width, W = 2F.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.grouped_products import Products


def fused(
    rows_ND: Tensor, gate_up_EWD: Tensor, down_EDF: Tensor, weights_N: Tensor | None, products: Products
) -> Tensor:
    """RoutedExperts.compute, with gate and up end to end."""
    y_ND: Tensor = _Narrowed.apply(products.forward(rows_ND, gate_up_EWD), down_EDF, weights_N, products)
    return y_ND


class _Narrowed(torch.autograd.Function):
    """down(w · silu(gate) · up). A function of its own, and the product before it another: what is kept is the same,
    and gradients of down's weight are there before those of gate's and up's."""

    @staticmethod
    def forward(ctx: Any, gate_up_NW: Tensor, down_EDF: Tensor, weights_N: Tensor | None, products: Products) -> Tensor:
        from models.swiglu_kernel import swiglu  # Triton comes with torch for CUDA alone

        ctx.save_for_backward(gate_up_NW, down_EDF, weights_N)
        ctx.products = products
        return products.product(swiglu(gate_up_NW, products.offsets_E, weights_N), down_EDF)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        from models.swiglu_kernel import swiglu_backward

        gate_up_NW, down_EDF, weights_N = ctx.saved_tensors
        products, grad_ND = ctx.products, grad_ND.contiguous()
        grad_h_NF = products.of_rows(grad_ND, down_EDF)
        grad_NW, h_NF, grad_weights_N = swiglu_backward(gate_up_NW, grad_h_NF, products.offsets_E, weights_N)
        return grad_NW, products.of_weights(grad_ND, h_NF), grad_weights_N, None
