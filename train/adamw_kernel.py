"""train/adamw_update.py as one kernel: each number is read once and written once.

bytes an element   gradient 4 (in bf16 2)   master 4 + 4   moments 8 + 8 (in bf16 4 + 4)   master in bf16 2
this               30 and less: 28 with gradients in bf16, 20 with moments too
in halves          master in bf16 2 + 2, and what that lacks 2 + 2, are the master: 2 less
torch, fused       28, 8 before it for clipping, and 6 behind it to round the master
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from train.adamw_update import Hyper

BLOCK = 1024


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
    """See train/adamw_update.py; `p` in float32, it, its moments, its copy and `low` contiguous."""
    if n := p.numel():
        grid = (triton.cdiv(n, BLOCK),)
        rounds = m.dtype is torch.bfloat16
        if low is not None:
            assert copy is not None
            copy = copy.view(torch.int16)
        # 1 − β from the host: of β in float32 it would be off by 2e-4 where β is 0.9999.
        one_pass_adamw[grid](
            p if low is None else low,
            m,
            v,
            grad.contiguous(),
            known,
            p if copy is None else copy,
            n,
            hyper.lr,
            1 - hyper.beta1,
            1 - hyper.beta2,
            hyper.eps,
            hyper.decay,
            number,
            rounds,
            copy is not None,
            low is not None,
            BLOCK,
        )


@triton.jit(do_not_specialize=["number"])
def one_pass_adamw(  # type: ignore[no-untyped-def]  # Triton's types are its own
    p_ptr,
    m_ptr,
    v_ptr,
    grad_ptr,
    known_ptr,
    copy_ptr,
    n,
    lr,
    new1,
    new2,
    eps,
    decay,
    number,
    rounds: tl.constexpr,
    copies: tl.constexpr,
    halves: tl.constexpr,
    block: tl.constexpr,
):
    """A block of elements. If `halves`, p_ptr is of what the copy lacks, and the copy's is of its bits."""
    clip = tl.load(known_ptr).to(tl.float32)
    end = n * tl.load(known_ptr + 1).to(tl.int64)  # none, where nothing is to be moved
    correction1 = tl.load(known_ptr + 2).to(tl.float32)
    correction2 = tl.load(known_ptr + 3).to(tl.float32)
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    here = at < end
    if halves:
        upper = tl.load(copy_ptr + at, mask=here).to(tl.int32)
        p = ((upper << 16) + tl.load(p_ptr + at, mask=here)).to(tl.float32, bitcast=True)
    else:
        p = tl.load(p_ptr + at, mask=here)
    m = tl.load(m_ptr + at, mask=here).to(tl.float32)
    v = tl.load(v_ptr + at, mask=here).to(tl.float32)
    g = tl.load(grad_ptr + at, mask=here).to(tl.float32) * clip
    m += new1 * (g - m)
    v += new2 * (g * g - v)
    p = p * (1 - lr * decay) - lr / correction1 * m / (tl.sqrt(v) / tl.sqrt(correction2) + eps)
    if halves:  # see parallel/halves.py
        bits = p.to(tl.int32, bitcast=True)
        upper = (bits + 0x8000) >> 16
        low = bits - (upper << 16)
        tl.store(copy_ptr + at, tl.where(p == p, upper, 0x7FC0).to(tl.int16), mask=here)
        tl.store(p_ptr + at, tl.where(p == p, low, 0).to(tl.int16), mask=here)
    else:
        tl.store(p_ptr + at, p, mask=here)
        if copies:
            tl.store(copy_ptr + at, p, mask=here)
    if rounds:
        step = tl.load(known_ptr + 4).to(tl.int64)
        noise = four_each(step * 4294967296 + number, tl.program_id(0), block)
        m = rounded(m, noise & 0x7FFF)
        v = rounded(v, noise >> 17)
    tl.store(m_ptr + at, m, mask=here)
    tl.store(v_ptr + at, v, mask=here)


@triton.jit
def four_each(seed, number, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """32 bits for each element of block `number`. Philox makes four numbers at once, of 32 bits if its counter has as
    many: one a call of 64, it took more time than the memory (29 of 24 ms for 4.9 B elements)."""
    of_four = number * (block // 4) + tl.arange(0, block // 4)
    a, b, c, d = tl.randint4x(seed, of_four)
    return tl.reshape(tl.join(tl.join(a, b), tl.join(c, d)), (block,)).to(tl.uint32, bitcast=True)


@triton.jit
def rounded(x, noise):  # type: ignore[no-untyped-def]
    """See round_to_bfloat16."""
    bits = (x.to(tl.uint32, bitcast=True) + 2 * noise) & 0xFFFF0000
    near = bits.to(tl.float32, bitcast=True)
    return tl.where(x == x, near, x).to(tl.bfloat16)  # the bits of a NaN could become those of 0
