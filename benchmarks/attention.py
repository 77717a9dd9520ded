"""Causal attention against the same within documents (a dense mask), forward and backward, by kernel: ms, on one GPU.

    python benchmarks/attention.py

B 4, S 4096, H 16, bf16; heads of 128, and MLA's 192 for queries and keys with 128 for values. Median of 20.
"""

import statistics
from collections.abc import Callable
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.attention import KERNELS_BY_SPEED
from models.positions import document_mask

B, S, H = 4, 4096, 16
SHAPES = [(128, 128), (192, 128)]


def median_ms(function: Callable[[], None]) -> float:
    """Of 20 runs, after 5."""
    times = []
    for i in range(25):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        if i >= 5:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kernels: list[SDPBackend]) -> None:
    """Forward and backward."""
    with sdpa_kernel(kernels, set_priority=True):
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    y.backward(torch.ones_like(y))


def main() -> None:
    """Print one line per head shape, mask and kernel; `auto` is what a model takes."""
    documents_BS = (torch.arange(S, device="cuda") // 500).repeat(B, 1)
    choices = {"auto": KERNELS_BY_SPEED} | {kernel.name: [kernel] for kernel in KERNELS_BY_SPEED}
    masks = {"causal": None, "documents": document_mask(documents_BS, torch.bfloat16)}
    for (qk_dim, v_dim), (mask_name, mask), (name, kernels) in product(SHAPES, masks.items(), choices.items()):
        q, k, v = (
            torch.randn(B, H, S, dim, device="cuda", dtype=torch.bfloat16, requires_grad=True)
            for dim in (qk_dim, qk_dim, v_dim)
        )
        try:
            took = f"{median_ms(partial(attend, q, k, v, mask, kernels)):8.2f} ms"
        except RuntimeError:
            took = " refused"
        print(f"{qk_dim}/{v_dim} {mask_name:10} {name:20} {took}")


if __name__ == "__main__":
    main()
