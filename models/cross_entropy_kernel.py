"""models/cross_entropy.py as one kernel: a token is one program, which reads its logits twice and writes them once.

    first sweep    the largest, and Σ exp(l - largest), block by block (Milakov and Gimelshein 2018, online softmax)
    second sweep   l becomes exp(l - largest) / Σ - [is the target], in place

bytes moved a logit in bf16, V = 32,768    kernel    torch's operators
loss                                       2         30
and its gradient                           2 + 2     52

The second sweep's reads are mostly from cache: a token's 64 KiB were just read, and with 16 warps a program few enough
tokens are under way at a time that all of theirs fit there.

c tokens, V their logits. In float32, whatever the logits are in.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.whole_vocabulary import IGNORED

BLOCK = 8192
A_THREAD = 16
"""Logits of a block that a thread has in its registers."""


def sums(logits_cV: Tensor, targets_c: Tensor, first: int, writes: bool) -> Tensor:
    """[3, c] in float32: the largest logit, Σ exp(l - largest), the target's logit (0 if it is not here).

    `first`: the id of the first column. With `writes`, which is for whole vocabularies, the logits become the gradient.
    For an ignored token nothing but its gradient means anything.
    """
    sums_3c = logits_cV.new_empty(3, len(logits_cV), dtype=torch.float32)
    _launch(logits_cV, targets_c, sums_3c, first, False, writes)
    return sums_3c


def write(logits_cV: Tensor, targets_c: Tensor, first: int, known_2c: Tensor) -> None:
    """Make `logits_cV` the gradient: `known_2c` are the largest logit here, and what exp(l - largest) is multiplied
    with."""
    _launch(logits_cV, targets_c, known_2c, first, True, True)


def _launch(logits_cV: Tensor, targets_c: Tensor, numbers: Tensor, first: int, known: bool, writes: bool) -> None:
    assert logits_cV.is_contiguous()
    n_tokens, n_columns = logits_cV.shape
    block = min(triton.next_power_of_2(n_columns), BLOCK)
    if n_tokens:
        cross_entropy_of_tokens[(n_tokens,)](
            logits_cV,
            targets_c.contiguous(),
            numbers,
            n_tokens,
            n_columns,
            first,
            IGNORED,
            known,
            writes,
            block,
            num_warps=max(1, block // (32 * A_THREAD)),
        )


@triton.jit
def cross_entropy_of_tokens(  # type: ignore[no-untyped-def]  # Triton's types are its own
    logits_ptr,
    targets_ptr,
    numbers_ptr,
    n_tokens,
    n_columns: tl.constexpr,
    first,
    ignored: tl.constexpr,
    known: tl.constexpr,
    writes: tl.constexpr,
    block: tl.constexpr,
):
    """A token."""
    token = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + token * n_columns
    numbers_ptr += token
    target = tl.load(targets_ptr + token)
    learns = target != ignored
    column = target - first
    here = (column >= 0) & (column < n_columns)  # what is ignored is below 0
    at = tl.arange(0, block)
    if known:
        largest = tl.load(numbers_ptr)
        factor = tl.load(numbers_ptr + n_tokens)
    else:
        # Read before anything is overwritten: the sweep's sums are waited for by all threads.
        of_target = tl.load(row_ptr + column, mask=here, other=0.0).to(tl.float32)
        largest = tl.full((), -3e38, tl.float32)  # -inf less itself would be NaN
        total = tl.full((), 0.0, tl.float32)
        for start in range(0, n_columns, block):
            inside = (start + at < n_columns) & learns
            x = tl.load(row_ptr + start + at, mask=inside, other=float("-inf")).to(tl.float32)
            larger = tl.maximum(largest, tl.max(x, axis=0))
            total = total * tl.exp(largest - larger) + tl.sum(tl.exp(x - larger), axis=0)
            largest = larger
        tl.store(numbers_ptr, largest)
        tl.store(numbers_ptr + n_tokens, total)
        tl.store(numbers_ptr + 2 * n_tokens, of_target)
        factor = 1 / total
    if writes:
        for start in range(0, n_columns, block):
            inside = start + at < n_columns
            x = tl.load(row_ptr + start + at, mask=inside & learns, other=0.0).to(tl.float32)
            grad = tl.exp(x - largest) * factor - tl.where(here & (start + at == column), 1.0, 0.0)
            tl.store(row_ptr + start + at, tl.where(learns, grad, 0.0), mask=inside)
