"""Routed experts by grouped products with kernels of ours between them (models/swiglu_kernel.py).

    forward    gate, up = rows · gate_upᵀ      h = w · silu(gate) · up                  y = h · downᵀ
    backward   dh = dy · down                  d_gate, d_up, dw, h again, in one pass   d_down = dyᵀ · h
               d_rows = d_gate_up · gate_up    d_gate_up's weight = d_gate_upᵀ · rows

Kept for backward: rows, gate and up. The host waits for nothing.

N rows, E slots, D model width, F expert width, W = 2F.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def fused(
    rows_ND: Tensor, offsets_E: Tensor, gate_up_EWD: Tensor, down_EDF: Tensor, weights_N: Tensor | None
) -> Tensor:
    """RoutedExperts.compute, with gate and up end to end."""
    gate_up_NW = F.grouped_mm(rows_ND, gate_up_EWD.transpose(1, 2), offs=offsets_E)
    y_ND: Tensor = _Narrowed.apply(gate_up_NW, offsets_E, down_EDF, weights_N)
    return y_ND


class _Narrowed(torch.autograd.Function):
    """down(w · silu(gate) · up). A function of its own, and the product before it torch's: what is kept is the same."""

    @staticmethod
    def forward(ctx: Any, gate_up_NW: Tensor, offsets_E: Tensor, down_EDF: Tensor, weights_N: Tensor | None) -> Tensor:
        from models.swiglu_kernel import swiglu  # Triton comes with torch for CUDA alone

        ctx.save_for_backward(gate_up_NW, offsets_E, down_EDF, weights_N)
        return F.grouped_mm(swiglu(gate_up_NW, offsets_E, weights_N), down_EDF.transpose(1, 2), offs=offsets_E)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None, Tensor, Tensor | None]:
        from models.swiglu_kernel import swiglu_backward

        gate_up_NW, offsets_E, down_EDF, weights_N = ctx.saved_tensors
        grad_ND = grad_ND.contiguous()
        grad_h_NF = F.grouped_mm(grad_ND, down_EDF, offs=offsets_E)
        grad_NW, h_NF, grad_weights_N = swiglu_backward(gate_up_NW, grad_h_NF, offsets_E, weights_N)
        return grad_NW, None, F.grouped_mm(grad_ND.T, h_NF, offs=offsets_E), grad_weights_N
