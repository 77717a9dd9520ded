"""SwiGLU between the two grouped products of routed experts, and back, each in one pass over memory.

    swiglu            h = silu(gate) · up                        reads 2, writes 1
    swiglu_backward   d_gate = dh · up · (s + silu(gate) · (1 - s)),   s = sigmoid(gate)
                      d_up = dh · silu(gate), and h again        reads 3, writes 3: values of a row's F

Rows from offsets_E[-1] on are neither read nor written; the device says how many there are, and the host does not ask.
Gate and up are the halves of one row. Arithmetic is in float32.

N rows, E slots, F expert width, W = 2F.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 16, 128
"""Of a tile: 1408, a width of experts, is 11 of these."""
PROGRAMS = 4096
"""At most: enough to fill a GPU, each of which goes on from tile to tile. So the rows that are not there cost nothing,
however many they might have been."""


def swiglu(gate_up_NW: Tensor, offsets_E: Tensor) -> Tensor:
    """h [N, F]."""
    n_rows, width = gate_up_NW.shape[0], gate_up_NW.shape[1] // 2
    h_NF = gate_up_NW.new_empty(n_rows, width)
    if n_rows:
        swiglu_forward[_programs(n_rows, width)](gate_up_NW, offsets_E, h_NF, len(offsets_E), width, ROWS, COLUMNS)
    return h_NF


def swiglu_backward(gate_up_NW: Tensor, grad_h_NF: Tensor, offsets_E: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of gate and up, [N, W], and h [N, F], which forward need not keep."""
    n_rows, width = grad_h_NF.shape
    grad_NW, h_NF = torch.empty_like(gate_up_NW), torch.empty_like(grad_h_NF)
    if n_rows:
        swiglu_back[_programs(n_rows, width)](
            gate_up_NW, grad_h_NF, offsets_E, grad_NW, h_NF, len(offsets_E), width, ROWS, COLUMNS
        )
    return grad_NW, h_NF


def _programs(n_rows: int, width: int) -> tuple[int]:
    return (min(PROGRAMS, triton.cdiv(n_rows, ROWS) * triton.cdiv(width, COLUMNS)),)


@triton.jit
def swiglu_forward(  # type: ignore[no-untyped-def]  # Triton's types are its own
    gate_up_ptr,
    offsets_ptr,
    h_ptr,
    n_slots,
    width,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    """Every PROGRAMS-th tile."""
    n_rows = tl.load(offsets_ptr + n_slots - 1)
    across = tl.cdiv(width, columns)
    tile = tl.program_id(0)
    while tile < tl.cdiv(n_rows, rows) * across:
        row = ((tile // across).to(tl.int64) * rows + tl.arange(0, rows))[:, None]
        column = ((tile % across) * columns + tl.arange(0, columns))[None, :]
        there = (row < n_rows) & (column < width)
        at = row * (2 * width) + column
        gate = tl.load(gate_up_ptr + at, mask=there, other=0.0).to(tl.float32)
        up = tl.load(gate_up_ptr + at + width, mask=there, other=0.0).to(tl.float32)
        tl.store(h_ptr + row * width + column, gate * tl.sigmoid(gate) * up, mask=there)
        tile += tl.num_programs(0)


@triton.jit
def swiglu_back(  # type: ignore[no-untyped-def]
    gate_up_ptr,
    grad_h_ptr,
    offsets_ptr,
    grad_ptr,
    h_ptr,
    n_slots,
    width,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    """Every PROGRAMS-th tile."""
    n_rows = tl.load(offsets_ptr + n_slots - 1)
    across = tl.cdiv(width, columns)
    tile = tl.program_id(0)
    while tile < tl.cdiv(n_rows, rows) * across:
        row = ((tile // across).to(tl.int64) * rows + tl.arange(0, rows))[:, None]
        column = ((tile % across) * columns + tl.arange(0, columns))[None, :]
        there = (row < n_rows) & (column < width)
        at = row * (2 * width) + column
        gate = tl.load(gate_up_ptr + at, mask=there, other=0.0).to(tl.float32)
        up = tl.load(gate_up_ptr + at + width, mask=there, other=0.0).to(tl.float32)
        grad_h = tl.load(grad_h_ptr + row * width + column, mask=there, other=0.0).to(tl.float32)
        sigmoid = tl.sigmoid(gate)
        silu = gate * sigmoid
        tl.store(grad_ptr + at, grad_h * up * (sigmoid + silu * (1.0 - sigmoid)), mask=there)
        tl.store(grad_ptr + at + width, grad_h * silu, mask=there)
        tl.store(h_ptr + row * width + column, silu * up, mask=there)
        tile += tl.num_programs(0)
