"""Rotary position embedding (Su et al. 2021): turn pair (i, i + d/2) of a head by position x theta^(-2i/d).

B batch, H heads, S sequence, R rotary width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from models.config import AttentionConfig
from models.layers import accumulation_dtype
from models.yarn import amplitude, stretch


class RotaryTable(NamedTuple):
    """cos and sin of every position's angles, both [S, R/2], at least float32."""

    cos_SR: Tensor
    sin_SR: Tensor


def rotary_table(
    sequence_length: int, config: AttentionConfig, dtype: torch.dtype, device: torch.device
) -> RotaryTable:
    """The table for positions 0 … `sequence_length` - 1, of `config.rope_dim` dimensions. Made for each micro-batch:
    4096 x 32 angles cost microseconds, and a buffer would have to be kept right through meta construction and casts."""
    wide = accumulation_dtype(dtype)
    exponent_R = torch.arange(0, config.rope_dim, 2, dtype=wide, device=device) / config.rope_dim
    frequency_R = stretch(config.rope_theta**-exponent_R, config.rope_theta, config.yarn)
    angle_SR = torch.outer(torch.arange(sequence_length, dtype=wide, device=device), frequency_R)
    return RotaryTable(angle_SR.cos() * amplitude(config.yarn), angle_SR.sin() * amplitude(config.yarn))


def rotate(x_BHSd: Tensor, table: RotaryTable) -> Tensor:
    """Turn every pair among the first R dimensions of `x_BHSd`, leave the others; same shape and dtype back."""
    half = table.cos_SR.shape[-1]
    wide = x_BHSd.to(table.cos_SR.dtype)
    first, second, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
    turned = (first * table.cos_SR - second * table.sin_SR, second * table.cos_SR + first * table.sin_SR)
    return torch.cat((*turned, rest), dim=-1).to(x_BHSd.dtype)
