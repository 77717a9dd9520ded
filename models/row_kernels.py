"""Tokens' sums of rows and rows' shares of tokens, each in one pass, with no second copy of the rows.

    of_tokens    rows[n] = x[token n]                       dispatch; and backward of combine, where experts weigh
    gather_sum   y[t] = Σ_k w[t, k] · rows[row of (t, k)]   combine; with w = 1, if experts weigh, and in backward of
                                                            dispatch
    spread       g_rows[n] = w[pair n] · g[token n],        backward of combine, where that weighs
                 g_w[pair n] = ⟨rows[n], g[token n]⟩

    bytes moved, K = 6, bf16, of a row's 2·D     plain          here
    combine                                      6 + 6 + 6 + 1  6 + 1
    its backward, where it weighs                6 + 6 + 6 + 7  6 + 6 + 6 (g is read from cache)
    else                                         6 + 6 + 1      6
    backward of dispatch                         6 + 6 + 6 + 1  6 + 1

Rows past the last end (models/permutation.py), which the device alone knows, are neither read nor written.

T tokens, K experts per token, N rows, D model width. Sums are in float32.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.permutation import Sorted


def of_tokens(x_TD: Tensor, pairs: Sorted, top_k: int) -> Tensor:
    """[N, D]: each row's token, as it is."""
    n_rows, dim = len(pairs.order_N), x_TD.shape[1]
    rows_ND = x_TD.new_empty(n_rows, dim)
    if n_rows:
        rows_of_tokens[(n_rows,)](x_TD, pairs.order_N, pairs.end_1, rows_ND, dim, top_k, triton.next_power_of_2(dim))
    return rows_ND


def gather_sum(
    rows_ND: Tensor, pairs: Sorted, weights_TK: Tensor | None, top_k: int, place: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """[T, D], where `place` says for so many rows, without pairs that have none. Weights in float32; None: all 1."""
    dim = rows_ND.shape[1]
    n_tokens = len(pairs.inverse_N) // top_k
    y_TD = place(rows_ND, n_tokens)
    if n_tokens:
        weights = pairs.inverse_N if weights_TK is None else weights_TK.contiguous()
        rows_gather_sum[(n_tokens,)](
            rows_ND,
            pairs.inverse_N,
            weights,
            pairs.end_1,
            y_TD,
            dim,
            top_k,
            weights_TK is not None,
            triton.next_power_of_2(dim),
        )
    return y_TD


def spread(rows_ND: Tensor, pairs: Sorted, weights_TK: Tensor, grad_TD: Tensor) -> tuple[Tensor, Tensor]:
    """[N, D] and [T, K]: gradients of the rows and of the weights; 0 for weights of pairs that have no row."""
    n_rows, dim = rows_ND.shape
    grad_rows_ND, grad_weights_TK = torch.empty_like(rows_ND), weights_TK.new_zeros(weights_TK.shape)
    if n_rows:
        rows_spread[(n_rows,)](
            rows_ND,
            pairs.order_N,
            weights_TK.contiguous(),
            pairs.end_1,
            grad_TD.contiguous(),
            grad_rows_ND,
            grad_weights_TK,
            dim,
            weights_TK.shape[1],
            triton.next_power_of_2(dim),
        )
    return grad_rows_ND, grad_weights_TK


@triton.jit
def rows_of_tokens(  # type: ignore[no-untyped-def]  # Triton's types are its own
    x_ptr,
    order_ptr,
    end_ptr,
    rows_ptr,
    dim,
    top_k: tl.constexpr,
    block: tl.constexpr,
):
    """A row."""
    row = tl.program_id(0).to(tl.int64)
    if row < tl.load(end_ptr):
        at = tl.arange(0, block)
        token = tl.load(order_ptr + row) // top_k
        tl.store(rows_ptr + row * dim + at, tl.load(x_ptr + token * dim + at, mask=at < dim), mask=at < dim)


@triton.jit
def rows_gather_sum(  # type: ignore[no-untyped-def]
    rows_ptr,
    inverse_ptr,
    weights_ptr,
    end_ptr,
    y_ptr,
    dim,
    top_k: tl.constexpr,
    weighted: tl.constexpr,
    block: tl.constexpr,
):
    """A token."""
    token = tl.program_id(0).to(tl.int64)
    end = tl.load(end_ptr)
    at = tl.arange(0, block)
    total = tl.zeros((block,), dtype=tl.float32)
    for k in tl.static_range(top_k):
        row = tl.load(inverse_ptr + token * top_k + k)
        there = (at < dim) & (row < end)
        values = tl.load(rows_ptr + row * dim + at, mask=there, other=0.0).to(tl.float32)
        if weighted:
            values *= tl.load(weights_ptr + token * top_k + k).to(tl.float32)
        total += values
    tl.store(y_ptr + token * dim + at, total, mask=at < dim)


@triton.jit
def rows_spread(  # type: ignore[no-untyped-def]
    rows_ptr,
    order_ptr,
    weights_ptr,
    end_ptr,
    grad_ptr,
    grad_rows_ptr,
    grad_weights_ptr,
    dim,
    top_k: tl.constexpr,
    block: tl.constexpr,
):
    """A row."""
    row = tl.program_id(0).to(tl.int64)
    if row < tl.load(end_ptr):
        at = tl.arange(0, block)
        pair = tl.load(order_ptr + row)
        grad = tl.load(grad_ptr + (pair // top_k) * dim + at, mask=at < dim, other=0.0).to(tl.float32)
        values = tl.load(rows_ptr + row * dim + at, mask=at < dim, other=0.0).to(tl.float32)
        weight = tl.load(weights_ptr + pair).to(tl.float32)
        tl.store(grad_rows_ptr + row * dim + at, weight * grad, mask=at < dim)
        tl.store(grad_weights_ptr + pair, tl.sum(values * grad, axis=0))
