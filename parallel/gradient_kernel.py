"""Gradients as backward makes them in 16 bits: added up in float32, and measured.

bytes an element    second micro-batch   2 + 2, and 4 for the sum
                    each further one     4 + 2, and 4
                    the norm             2, or 4 of a sum

Of the 4 TB/s that an H200 copies, torch's addition of two dtypes, which loads number by number, reaches 1.7, and its
norms of many tensors in 16 bits 2.2.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from parallel.torch_internals import norms_in_float64

BLOCK = 2048
NORM_BLOCK = 16384
LARGE = 1 << 20
"""Elements from which on a launch of its own is worth it."""


def add(total: Tensor, gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """See parallel/zero1.py: AddUp."""
    if total.dtype is dtype and total.is_contiguous():
        out = total
    else:
        out = torch.empty(total.shape, dtype=dtype, device=total.device)
    if n := out.numel():
        gradients_add[(triton.cdiv(n, BLOCK),)](total.contiguous(), gradient.contiguous(), out, n, BLOCK)
    return out


def norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """See norms_in_float64: the norms of blocks, then of these. Sixteen squares at a time, each by its block's largest,
    are added up in float32."""
    small = [_block_norms(t) if t.numel() >= LARGE and t.dtype is not torch.float64 else t for t in tensors]
    return norms_in_float64(small)


def _block_norms(tensor: Tensor) -> Tensor:
    n = tensor.numel()
    out = torch.empty(triton.cdiv(n, NORM_BLOCK), dtype=torch.float64, device=tensor.device)
    gradients_norm[(len(out),)](tensor.contiguous(), out, n, NORM_BLOCK)
    return out


@triton.jit
def gradients_norm(gradient_ptr, out_ptr, n, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of a block of elements."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    gradient = tl.load(gradient_ptr + at, mask=at < n, other=0.0).to(tl.float32)
    # Beside the largest, or squares beyond 1e38 and below 1e-45 would be infinity and 0.
    largest = tl.max(tl.abs(gradient), axis=0)
    gradient /= tl.where(largest > 0.0, largest, 1.0)
    squares = tl.sum(tl.reshape(gradient * gradient, (block // 16, 16)), axis=1).to(tl.float64)
    tl.store(out_ptr + tl.program_id(0), largest.to(tl.float64) * tl.sqrt(tl.sum(squares, axis=0)))


@triton.jit
def gradients_add(total_ptr, gradient_ptr, out_ptr, n, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """A block of elements. Triton's types are its own."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    here = at < n
    total = tl.load(total_ptr + at, mask=here).to(out_ptr.dtype.element_ty)
    gradient = tl.load(gradient_ptr + at, mask=here).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + at, total + gradient, mask=here)
