"""AdamW's update of one tensor (Loshchilov and Hutter 2019), in plain torch: what the kernel is measured against, and
what runs where there is none.

    g ← g · clip                        m ← β₁ m + (1 − β₁) g             v ← β₂ v + (1 − β₂) g²
    p ← p · (1 − lr · decay)            p ← p − lr / c₁ · m / (√v / √c₂ + eps)      cᵢ = 1 − βᵢ ^ step
"""

from typing import NamedTuple

import torch
from torch import Tensor

from parallel.halves import join_bits, split_bits


class Hyper(NamedTuple):
    """What the host knows."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    decay: float


def scalars(hyper: Hyper, step: Tensor, clip: Tensor | None, left_out: Tensor | None) -> Tensor:
    """What the device knows, float64 [5]: clip; 1, or 0 where nothing is to be moved; c₁; c₂; and `step`, the number of
    this update. `clip` None is 1, `left_out` None is false."""
    one, wide = torch.ones((), dtype=torch.float64, device=step.device), step.double()
    return torch.stack(
        (
            one if clip is None else clip.double(),
            one if left_out is None else (~left_out).double(),
            1 - hyper.beta1**wide,
            1 - hyper.beta2**wide,
            wide,
        )
    )


def update(
    p: Tensor,
    m: Tensor,
    v: Tensor,
    grad: Tensor,
    hyper: Hyper,
    known: Tensor,
    number: int,
    copy: Tensor | None = None,
    low: Tensor | None = None,
) -> None:
    """Move `p` and its moments in place, computing in the dtype of `p`, and round it into `copy`; the host waits for
    what is known. With `low` p is in halves (parallel/halves.py): `copy` and `low` are moved, and `p` has no memory.
    Moments in bfloat16 are rounded stochastically, by step and tensor `number`: rounded to the nearest, a mean would
    not see what is small beside it."""
    clip, moves, correction1, correction2, step = known.tolist()
    if not moves:
        return
    if low is not None:
        assert copy is not None
        p = torch.empty_like(p)
        join_bits(p, copy, low)
    g = grad.to(p.dtype) * clip
    mean = m.to(p.dtype).lerp(g, 1 - hyper.beta1)
    square = v.to(p.dtype).mul(hyper.beta2).addcmul(g, g, value=1 - hyper.beta2)
    denominator = square.sqrt().div_(correction2**0.5).add_(hyper.eps)
    p.mul_(1 - hyper.lr * hyper.decay).addcdiv_(mean, denominator, value=-hyper.lr / correction1)
    if copy is not None and low is not None:
        split_bits(p, copy, low)
    elif copy is not None:
        copy.copy_(p)
    if m.dtype is p.dtype:
        m.copy_(mean)
        v.copy_(square)
        return
    # The generator of a CPU looks at 32 bits of a seed alone. Multiples of the golden ratio lie far apart.
    generator = torch.Generator(p.device).manual_seed((int(step) * 0x9E3779B1 + number * 0x85EBCA6B) % 2**32)
    noise = torch.randint(0, 1 << 31, p.shape, generator=generator, dtype=torch.int64, device=p.device)
    m.copy_(round_to_bfloat16(mean, noise & 0x7FFF))
    v.copy_(round_to_bfloat16(square, noise >> 16))


def round_to_bfloat16(x: Tensor, noise: Tensor) -> Tensor:
    """To one of the two neighbours in bfloat16, the nearer the likelier, so that the mean of many is x; `noise` is
    uniform in [0, 2¹⁵)."""
    bits = x.float().view(torch.int32) + 2 * noise.int()
    near = (bits & ~0xFFFF).view(torch.float32)
    return torch.where(x == x, near, x).to(torch.bfloat16)  # the bits of a NaN could become those of 0
