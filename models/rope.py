"""Rotary position embedding (Su et al. 2021): turn pair (i, i + d/2) of a head by position x theta^(-2i/d).

B batch, H heads, S sequence, R rotary width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from models.layers import accumulation_dtype


class RotaryTable(NamedTuple):
    """cos and sin of every position's angles, both [S, R/2], at least float32."""

    cos_SR: Tensor
    sin_SR: Tensor


def rotary_table(
    sequence_length: int, width: int, theta: float, dtype: torch.dtype, device: torch.device
) -> RotaryTable:
    """The table for positions 0 … `sequence_length` - 1. Made anew in each forward: 4096 x 32 angles cost microseconds,
    and a buffer would have to be kept right through meta construction and casts."""
    wide = accumulation_dtype(dtype)
    frequency_R = theta ** -(torch.arange(0, width, 2, dtype=wide, device=device) / width)
    angle_SR = torch.outer(torch.arange(sequence_length, dtype=wide, device=device), frequency_R)
    return RotaryTable(angle_SR.cos(), angle_SR.sin())


def rotate(x_BHSR: Tensor, table: RotaryTable) -> Tensor:
    """Turn every pair of `x_BHSR`; same shape and dtype back."""
    first, second = x_BHSR.to(table.cos_SR.dtype).chunk(2, dim=-1)
    turned = (first * table.cos_SR - second * table.sin_SR, second * table.cos_SR + first * table.sin_SR)
    return torch.cat(turned, dim=-1).to(x_BHSR.dtype)
