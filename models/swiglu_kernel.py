"""SwiGLU between the two grouped products of routed experts, and back, each in one pass over memory.

    swiglu            h = w · silu(gate) · up                        reads 2, writes 1
    swiglu_backward   d_gate = w · dh · up · (s + silu(gate) · (1 - s)),   s = sigmoid(gate)
                      d_up = w · dh · silu(gate)
                      dw = ⟨dh, silu(gate) · up⟩, and h again        reads 3, writes 3: values of a row's F

w is a row's weight, or 1. Rows from offsets_E[-1] on are neither read nor written, but for their dw, which is 0; the
device says how many there are, and the host does not ask. Gate and up are the halves of one row. Arithmetic is in
float32.

N rows, E slots, F expert width, W = 2F.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 8, 128
"""Of a tile: 1408, a width of experts, is 11 of these. A program goes through all columns of its rows."""
PROGRAMS = 2048
"""At most: enough to fill a GPU, each of which goes on from rows to rows. So the rows that are not there cost nothing,
however many they might have been."""


def swiglu(gate_up_NW: Tensor, offsets_E: Tensor, weights_N: Tensor | None = None) -> Tensor:
    """h [N, F]."""
    n_rows, width = gate_up_NW.shape[0], gate_up_NW.shape[1] // 2
    h_NF = gate_up_NW.new_empty(n_rows, width)
    if n_rows:
        weights = offsets_E if weights_N is None else weights_N.contiguous()
        swiglu_forward[_programs(n_rows)](
            gate_up_NW, offsets_E, weights, h_NF, len(offsets_E), width, weights_N is not None, ROWS, COLUMNS
        )
    return h_NF


def swiglu_backward(
    gate_up_NW: Tensor, grad_h_NF: Tensor, offsets_E: Tensor, weights_N: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradient of gate and up, [N, W]; h [N, F], which forward need not keep; and the gradient of weights, [N]."""
    n_rows, width = grad_h_NF.shape
    grad_NW, h_NF = torch.empty_like(gate_up_NW), torch.empty_like(grad_h_NF)
    grad_weights_N = None if weights_N is None else torch.zeros_like(weights_N)
    if n_rows:
        swiglu_back[_programs(n_rows)](
            gate_up_NW,
            grad_h_NF,
            offsets_E,
            offsets_E if weights_N is None else weights_N.contiguous(),
            grad_NW,
            h_NF,
            offsets_E if grad_weights_N is None else grad_weights_N,
            len(offsets_E),
            width,
            weights_N is not None,
            ROWS,
            COLUMNS,
        )
    return grad_NW, h_NF, grad_weights_N


def _programs(n_rows: int) -> tuple[int]:
    return (min(PROGRAMS, triton.cdiv(n_rows, ROWS)),)


@triton.jit
def swiglu_forward(  # type: ignore[no-untyped-def]  # Triton's types are its own
    gate_up_ptr,
    offsets_ptr,
    weights_ptr,
    h_ptr,
    n_slots,
    width: tl.constexpr,
    weighted: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    """Every PROGRAMS-th group of rows."""
    n_rows = tl.load(offsets_ptr + n_slots - 1)
    group = tl.program_id(0)
    while group * rows < n_rows:
        row = group.to(tl.int64) * rows + tl.arange(0, rows)
        if weighted:
            weight = tl.load(weights_ptr + row, mask=row < n_rows, other=0.0).to(tl.float32)
        for start in range(0, width, columns):
            column = start + tl.arange(0, columns)[None, :]
            there = (row[:, None] < n_rows) & (column < width)
            at = row[:, None] * (2 * width) + column
            gate = tl.load(gate_up_ptr + at, mask=there, other=0.0).to(tl.float32)
            up = tl.load(gate_up_ptr + at + width, mask=there, other=0.0).to(tl.float32)
            h = gate * tl.sigmoid(gate) * up
            if weighted:
                h *= weight[:, None]
            tl.store(h_ptr + row[:, None] * width + column, h, mask=there)
        group += tl.num_programs(0)


@triton.jit
def swiglu_back(  # type: ignore[no-untyped-def]
    gate_up_ptr,
    grad_h_ptr,
    offsets_ptr,
    weights_ptr,
    grad_ptr,
    h_ptr,
    grad_weights_ptr,
    n_slots,
    width: tl.constexpr,
    weighted: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    """Every PROGRAMS-th group of rows."""
    n_rows = tl.load(offsets_ptr + n_slots - 1)
    group = tl.program_id(0)
    while group * rows < n_rows:
        row = group.to(tl.int64) * rows + tl.arange(0, rows)
        if weighted:
            weight = tl.load(weights_ptr + row, mask=row < n_rows, other=0.0).to(tl.float32)
        of_weight = tl.zeros((rows, columns), dtype=tl.float32)
        for start in range(0, width, columns):
            column = start + tl.arange(0, columns)[None, :]
            there = (row[:, None] < n_rows) & (column < width)
            at = row[:, None] * (2 * width) + column
            gate = tl.load(gate_up_ptr + at, mask=there, other=0.0).to(tl.float32)
            up = tl.load(gate_up_ptr + at + width, mask=there, other=0.0).to(tl.float32)
            grad_h = tl.load(grad_h_ptr + row[:, None] * width + column, mask=there, other=0.0).to(tl.float32)
            sigmoid = tl.sigmoid(gate)
            silu = gate * sigmoid
            h = silu * up
            if weighted:
                of_weight += grad_h * h
                h *= weight[:, None]
                grad_h *= weight[:, None]
            tl.store(grad_ptr + at, grad_h * up * (sigmoid + silu * (1.0 - sigmoid)), mask=there)
            tl.store(grad_ptr + at + width, grad_h * silu, mask=there)
            tl.store(h_ptr + row[:, None] * width + column, h, mask=there)
        if weighted:
            tl.store(grad_weights_ptr + row, tl.sum(of_weight, axis=1), mask=row < n_rows)
        group += tl.num_programs(0)
