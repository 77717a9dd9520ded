"""Rows between the memories of GPUs that can address each other's: moved, and summed, by few programs.

    rows_moved    to[p][t] = from[p][t]          where wanted[p][t]      to or from is a peer's
    rows_summed   y[t] = Σ_p from[p][t]          over wanted[p][t]       in float32, one rounding

Each program takes every n-th block of rows: as many programs as multiprocessors are to be spent, each with all threads
that one holds. Lists are of addresses, since a peer's memory is known by nothing else.

P lists, T tokens, D model width (a power of two).
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

MOVED, SUMMED, WARPS = 16, 8, 32
"""Rows that a program has in flight, of a list if it sums: 64 KiB of bf16 rows of 2048 are 64 bytes a thread."""
ELEMENT = {torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


class Lists:
    """The rows [T, D] of several tensors, all of one shape and contiguous, some in peers' memory."""

    def __init__(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        assert all(tensor.is_contiguous() for tensor in tensors)
        self.kept = list(tensors)
        self.addresses_P = torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.int64, device=device)


def move(source: Lists, target: Lists, wanted_PT: Tensor, programs: int) -> None:
    """Copy the rows that are wanted (uint8); the others of `target` stay as they are."""
    n_lists, n_tokens = wanted_PT.shape
    first = source.kept[0]
    rows_moved[(programs,)](
        source.addresses_P,
        target.addresses_P,
        wanted_PT,
        n_tokens,
        n_lists,
        first.shape[-1],
        MOVED,
        ELEMENT[first.dtype],
        num_warps=WARPS,
    )


def add_up(source: Lists, wanted_PT: Tensor, y_TD: Tensor, programs: int) -> None:
    """The sums of the rows that are wanted (uint8) into `y_TD`; others are not read."""
    n_lists, n_tokens = wanted_PT.shape
    rows_summed[(programs,)](
        source.addresses_P,
        wanted_PT,
        y_TD,
        n_tokens,
        n_lists,
        y_TD.shape[-1],
        SUMMED,
        ELEMENT[y_TD.dtype],
        num_warps=WARPS,
    )


@triton.jit
def rows_moved(  # type: ignore[no-untyped-def]  # Triton's types are its own
    from_ptr,
    to_ptr,
    wanted_ptr,
    n_tokens,
    n_lists,
    dim: tl.constexpr,
    rows: tl.constexpr,
    element: tl.constexpr,
):
    """Neighbouring tasks are of different lists: all peers' links are in use."""
    at = tl.arange(0, dim)
    task = tl.program_id(0)
    while task < tl.cdiv(n_tokens, rows) * n_lists:
        one = task % n_lists
        token = (task // n_lists) * rows + tl.arange(0, rows)
        wanted = tl.load(wanted_ptr + one * n_tokens + token, mask=token < n_tokens, other=0) != 0
        # An address that was loaded: that it is aligned, so that a thread moves 16 bytes at once, Triton can't know.
        source = tl.multiple_of(tl.load(from_ptr + one).to(tl.pointer_type(element)), 16)
        target = tl.multiple_of(tl.load(to_ptr + one).to(tl.pointer_type(element)), 16)
        place = token.to(tl.int64)[:, None] * dim + at[None, :]
        mask = wanted[:, None] & (at[None, :] < dim)
        tl.store(target + place, tl.load(source + place, mask=mask), mask=mask)
        task += tl.num_programs(0)


@triton.jit
def rows_summed(  # type: ignore[no-untyped-def]
    from_ptr,
    wanted_ptr,
    y_ptr,
    n_tokens,
    n_lists: tl.constexpr,
    dim: tl.constexpr,
    rows: tl.constexpr,
    element: tl.constexpr,
):
    """In the order of the lists."""
    at = tl.arange(0, dim)
    block = tl.program_id(0)
    while block < tl.cdiv(n_tokens, rows):
        token = block * rows + tl.arange(0, rows)
        there = token < n_tokens
        place = token.to(tl.int64)[:, None] * dim + at[None, :]
        total = tl.zeros((rows, dim), dtype=tl.float32)
        for one in tl.static_range(n_lists):
            wanted = tl.load(wanted_ptr + one * n_tokens + token, mask=there, other=0) != 0
            source = tl.multiple_of(tl.load(from_ptr + one).to(tl.pointer_type(element)), 16)
            mask = wanted[:, None] & (at[None, :] < dim)
            total += tl.load(source + place, mask=mask, other=0.0).to(tl.float32)
        tl.store(y_ptr + place, total.to(element), mask=there[:, None] & (at[None, :] < dim))
        block += tl.num_programs(0)
