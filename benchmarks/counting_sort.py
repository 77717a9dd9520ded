"""Pairs by place as a counting sort, in three kernels, beside the radix sort of models/permutation.py.

    count     places of each block of pairs               [blocks, places]
    scan      where each block's pairs of a place begin   [blocks, places], and the places' ends
    scatter   a pair's row: where its block's begin, and how many of its place stand before it in its block

Stable, no atomics, nothing waits for the GPU.

N pairs, E places.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.permutation import Sorted

BLOCK = 256


def sort_by_counting(place_N: Tensor, n_places: int) -> Sorted:
    """models.permutation.sort_pairs, where each pair has a place."""
    n, device = len(place_N), place_N.device
    n_blocks, width = triton.cdiv(n, BLOCK), triton.next_power_of_2(n_places)
    counts = torch.empty(n_blocks, width, dtype=torch.int32, device=device)
    starts = torch.empty_like(counts)
    order_N, inverse_N = (torch.empty(n, dtype=torch.int64, device=device) for _ in range(2))
    ends_E = torch.empty(n_places, dtype=torch.int64, device=device)
    sort_count[(n_blocks,)](place_N, counts, n, width, BLOCK)
    sort_scan[(1,)](counts, starts, ends_E, n_blocks, n_places, width, triton.next_power_of_2(n_blocks), num_warps=16)
    sort_scatter[(n_blocks,)](place_N, starts, order_N, inverse_N, n, width, BLOCK)
    return Sorted(order_N, inverse_N, ends_E, some_have_none=False)


@triton.jit
def sort_count(place_ptr, counts_ptr, n, width: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """A block of pairs."""
    at = tl.program_id(0) * block + tl.arange(0, block)
    places = tl.arange(0, width)
    place = tl.load(place_ptr + at, mask=at < n, other=-1).to(tl.int32)
    counts = tl.sum((place[:, None] == places[None, :]).to(tl.int32), axis=0)
    tl.store(counts_ptr + tl.program_id(0) * width + places, counts)


@triton.jit
def sort_scan(  # type: ignore[no-untyped-def]
    counts_ptr, starts_ptr, ends_ptr, n_blocks, n_places, width: tl.constexpr, padded: tl.constexpr
):
    """All of it."""
    blocks, places = tl.arange(0, padded), tl.arange(0, width)
    at = blocks[:, None] * width + places[None, :]
    here = blocks[:, None] < n_blocks
    counts = tl.load(counts_ptr + at, mask=here, other=0)
    ends = tl.cumsum(tl.sum(counts, axis=0), axis=0)
    begins = ends - tl.sum(counts, axis=0)
    tl.store(starts_ptr + at, tl.cumsum(counts, axis=0) - counts + begins[None, :], mask=here)
    tl.store(ends_ptr + places, ends.to(tl.int64), mask=places < n_places)


@triton.jit
def sort_scatter(  # type: ignore[no-untyped-def]
    place_ptr, starts_ptr, order_ptr, inverse_ptr, n, width: tl.constexpr, block: tl.constexpr
):
    """A block of pairs."""
    at = tl.program_id(0) * block + tl.arange(0, block)
    here = at < n
    place = tl.load(place_ptr + at, mask=here, other=-1).to(tl.int32)
    mine = (place[:, None] == tl.arange(0, width)[None, :]).to(tl.int32)
    before = tl.sum(mine * tl.cumsum(mine, axis=0), axis=1) - 1
    row = tl.load(starts_ptr + tl.program_id(0) * width + place, mask=here, other=0) + before
    tl.store(order_ptr + row, at.to(tl.int64), mask=here)
    tl.store(inverse_ptr + at, row.to(tl.int64), mask=here)
