"""Rows out of the memories of GPUs that can address each other's: taken, and summed, by few programs.

    peer_rows_taken     y[r·T + t] = x_r[t]                  where wanted[r][t]
    peer_rows_summed    y[t] = Σ_r x_r[first + t]            over wanted[r][t]      in float32 or more, one rounding

x_r is rank r's, known by its address alone. Each program takes every n-th block of rows: as many programs as
multiprocessors are to be spent, each with all threads that one holds. A rank begins with its neighbour's, so that all
links are in use.

T tokens, R ranks, N = R·T, D model width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 16
"""Of some 130 multiprocessors. Twice as many are no faster over NVLink on an H100, and cost what runs beside more."""
TAKEN, SUMMED, WARPS = 2**15, 2**14, 32
"""Elements that a program has in flight, of a rank if it sums: of 2048 bfloat16s in a row, 64 bytes a thread."""
ELEMENT = {torch.bfloat16: tl.bfloat16, torch.float32: tl.float32, torch.float64: tl.float64}


def take(addresses_R: Tensor, wanted_RT: Tensor, rank: int, y_ND: Tensor, programs: int = PROGRAMS) -> None:
    """Copy the rows that are wanted (uint8), of `y_ND`'s dtype; the others there stay as they are."""
    n_ranks, n_tokens = wanted_RT.shape
    dim = y_ND.shape[1]
    block = triton.next_power_of_2(dim)
    peer_rows_taken[(programs,)](
        addresses_R,
        wanted_RT,
        y_ND,
        n_tokens,
        rank,
        n_ranks,
        dim,
        block,
        max(TAKEN // block, 1),
        ELEMENT[y_ND.dtype],
        num_warps=WARPS,
    )


def add_up(
    addresses_R: Tensor, first: int, wanted_RT: Tensor, rank: int, y_TD: Tensor, programs: int = PROGRAMS
) -> None:
    """The sums of the rows that are wanted (uint8), from each rank's row `first` on; others are not read."""
    n_ranks, n_tokens = wanted_RT.shape
    dim = y_TD.shape[1]
    block = triton.next_power_of_2(dim)
    peer_rows_summed[(programs,)](
        addresses_R,
        wanted_RT,
        y_TD,
        first,
        n_tokens,
        rank,
        n_ranks,
        dim,
        block,
        max(SUMMED // block, 1),
        ELEMENT[y_TD.dtype],
        tl.float64 if y_TD.dtype is torch.float64 else tl.float32,
        num_warps=WARPS,
    )


@triton.jit
def peer_rows_taken(  # type: ignore[no-untyped-def]  # Triton's types are its own
    from_ptr,
    wanted_ptr,
    y_ptr,
    n_tokens,
    rank,
    n_ranks: tl.constexpr,
    dim: tl.constexpr,
    block: tl.constexpr,
    rows: tl.constexpr,
    element: tl.constexpr,
):
    """Neighbouring tasks are of different ranks."""
    at = tl.arange(0, block)
    task = tl.program_id(0)
    while task < tl.cdiv(n_tokens, rows) * n_ranks:
        peer = (task + rank + 1) % n_ranks
        token = (task // n_ranks) * rows + tl.arange(0, rows)
        wanted = tl.load(wanted_ptr + peer * n_tokens + token, mask=token < n_tokens, other=0) != 0
        # An address that was loaded: that it is aligned, so that a thread moves 16 bytes at once, Triton can't know.
        source = tl.multiple_of(tl.load(from_ptr + peer).to(tl.pointer_type(element)), 16)
        mask = wanted[:, None] & (at[None, :] < dim)
        values = tl.load(source + token.to(tl.int64)[:, None] * dim + at[None, :], mask=mask)
        place = (peer * n_tokens + token).to(tl.int64)[:, None] * dim + at[None, :]
        tl.store(y_ptr + place, values, mask=mask)
        task += tl.num_programs(0)


@triton.jit
def peer_rows_summed(  # type: ignore[no-untyped-def]
    from_ptr,
    wanted_ptr,
    y_ptr,
    first,
    n_tokens,
    rank,
    n_ranks: tl.constexpr,
    dim: tl.constexpr,
    block: tl.constexpr,
    rows: tl.constexpr,
    element: tl.constexpr,
    wide: tl.constexpr,
):
    """In the order of the ranks, from the next one on."""
    at = tl.arange(0, block)
    task = tl.program_id(0)
    while task < tl.cdiv(n_tokens, rows):
        token = task * rows + tl.arange(0, rows)
        there = token < n_tokens
        total = tl.zeros((rows, block), dtype=wide)
        for step in tl.static_range(n_ranks):
            peer = (step + rank + 1) % n_ranks
            wanted = tl.load(wanted_ptr + peer * n_tokens + token, mask=there, other=0) != 0
            source = tl.multiple_of(tl.load(from_ptr + peer).to(tl.pointer_type(element)), 16)
            mask = wanted[:, None] & (at[None, :] < dim)
            place = (first + token).to(tl.int64)[:, None] * dim + at[None, :]
            total += tl.load(source + place, mask=mask, other=0.0).to(wide)
        place = token.to(tl.int64)[:, None] * dim + at[None, :]
        tl.store(y_ptr + place, total.to(element), mask=there[:, None] & (at[None, :] < dim))
        task += tl.num_programs(0)
