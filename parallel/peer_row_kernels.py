"""Rows out of the memories of GPUs that can address each other's: taken, and summed, by few programs.

    peer_rows_wanted    wanted[r][t] = any_k rank of choice[t][k] = r
    peer_rows_taken     y[r·T + t] = y_r[r·T + t]            where wanted[r][t], which rank r may say; r another one
    peer_rows_summed    y[t] = Σ_r x_r[first + t]            over wanted[r][t]      in float32 or more, one rounding

y_r and x_r are rank r's, known by their addresses alone. What moves rows is few programs, each of which takes every
n-th block of rows: as many as multiprocessors are to be spent, each with all threads that one holds. A rank begins with
its neighbour's, so that all links are in use.

T tokens, R ranks, N = R·T, K experts per token, E experts, D model width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 16
"""Of some 130 multiprocessors. Twice as many are no faster over NVLink on an H100, and cost what runs beside more."""
TAKEN, SUMMED, WARPS = 2**15, 2**14, 32
"""Elements that a program has in flight, of a rank if it sums: of 2048 bfloat16s in a row, 64 bytes a thread."""
TOKENS = 128
"""That a program looks through for who wants them."""
ELEMENT = {torch.bfloat16: tl.bfloat16, torch.float32: tl.float32, torch.float64: tl.float64}


def find_wanted(choices_TK: Tensor, rank_of_E: Tensor, here_RT: Tensor, there_RT: Tensor) -> None:
    """Which tokens each rank has an expert of: 1 or 0 (uint8), in two places.

    Args:
        choices_TK: experts (int64); -1: none.
        rank_of_E: on which rank each is, int32.
        here_RT: one of them, contiguous.
        there_RT: the other.
    """
    n_tokens, top_k = choices_TK.shape
    peer_rows_wanted[(triton.cdiv(n_tokens, TOKENS),)](
        choices_TK,
        rank_of_E,
        here_RT,
        there_RT,
        n_tokens,
        *choices_TK.stride(),
        len(here_RT),
        top_k,
        triton.next_power_of_2(top_k),
        TOKENS,
    )


def take(
    addresses_R: Tensor,
    wanted_RT: Tensor,
    rank: int,
    y_ND: Tensor,
    said_behind: int | None = None,
    programs: int = PROGRAMS,
) -> None:
    """Copy others' rows that are wanted (uint8) to where they lie with them; what else is there stays as it is.

    So many bytes behind its address, if `said_behind` is given, each rank says what others want of it, [R, T]; then
    `wanted_RT` is filled from there, but for `rank`'s own.
    """
    n_ranks, n_tokens = wanted_RT.shape
    dim = y_ND.shape[1]
    block = triton.next_power_of_2(dim)
    peer_rows_taken[(programs,)](
        addresses_R,
        wanted_RT,
        y_ND,
        n_tokens,
        rank,
        said_behind or 0,
        said_behind is not None,
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
def peer_rows_wanted(  # type: ignore[no-untyped-def]  # Triton's types are its own
    choices_ptr,
    rank_of_ptr,
    here_ptr,
    there_ptr,
    n_tokens,
    stride_t,
    stride_k,
    n_ranks: tl.constexpr,
    top_k: tl.constexpr,
    block: tl.constexpr,
    tokens: tl.constexpr,
):
    token = tl.program_id(0) * tokens + tl.arange(0, tokens)
    at = tl.arange(0, block)
    in_T = token < n_tokens
    in_TK = in_T[:, None] & (at[None, :] < top_k)
    choice = tl.load(
        choices_ptr + token.to(tl.int64)[:, None] * stride_t + at[None, :] * stride_k, mask=in_TK, other=-1
    )
    owner = tl.load(rank_of_ptr + choice, mask=choice >= 0, other=-1)
    for rank in tl.static_range(n_ranks):
        wanted = tl.max((owner == rank).to(tl.int32), axis=1).to(tl.uint8)
        tl.store(here_ptr + rank * n_tokens + token, wanted, mask=in_T)
        tl.store(there_ptr + rank * n_tokens + token, wanted, mask=in_T)


@triton.jit
def peer_rows_taken(  # type: ignore[no-untyped-def]
    from_ptr,
    wanted_ptr,
    y_ptr,
    n_tokens,
    rank,
    behind,
    said: tl.constexpr,
    n_ranks: tl.constexpr,
    dim: tl.constexpr,
    block: tl.constexpr,
    rows: tl.constexpr,
    element: tl.constexpr,
):
    """Neighbouring tasks are of different ranks."""
    at = tl.arange(0, block)
    task = tl.program_id(0)
    while task < tl.cdiv(n_tokens, rows) * (n_ranks - 1):
        peer = (task % (n_ranks - 1) + rank + 1) % n_ranks
        token = (task // (n_ranks - 1)) * rows + tl.arange(0, rows)
        at_wanted = wanted_ptr + peer * n_tokens + token
        if said:
            said_ptr = tl.load(from_ptr + peer).to(tl.pointer_type(tl.uint8)) + behind
            wanted = tl.load(said_ptr + rank * n_tokens + token, mask=token < n_tokens, other=0)
            tl.store(at_wanted, wanted, mask=token < n_tokens)
        else:
            wanted = tl.load(at_wanted, mask=token < n_tokens, other=0)
        # An address that was loaded: that it is aligned, so that a thread moves 16 bytes at once, Triton can't know.
        source = tl.multiple_of(tl.load(from_ptr + peer).to(tl.pointer_type(element)), 16)
        mask = (wanted != 0)[:, None] & (at[None, :] < dim)
        place = (peer * n_tokens + token).to(tl.int64)[:, None] * dim + at[None, :]
        tl.store(y_ptr + place, tl.load(source + place, mask=mask), mask=mask)
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
