"""model.loss_backend=auto on a GPU: the kernel beside torch's operators in float64."""

import pytest
import torch

from models.config import LossBackend
from models.head import Head

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_the_kernel_is_torchs_operators() -> None:
    from harness.kernel_beside_cross_entropy import main  # Triton is not everywhere that tests are collected

    main("cuda")


@pytest.mark.parametrize("chunk", [512, 1024])
def test_no_logits_are_held_but_the_products_own(chunk: int) -> None:
    """A chunk's in bf16, once; and a repetition gives the same bits."""
    n_tokens, dim, n_words = 1024, 128, 32_768
    with torch.device("cuda"):
        head = Head(dim, n_words, chunk, LossBackend.auto).bfloat16()
        head.weight.data.normal_()
        x_BSD = torch.randn(1, n_tokens, dim, dtype=torch.bfloat16).requires_grad_()
        targets_BS = torch.randint(0, n_words, (1, n_tokens))
    outs = []
    for _ in range(2):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = head(x_BSD, targets_BS)
        outs.append((loss, *torch.autograd.grad(loss, (x_BSD, head.weight), retain_graph=True)))
        loss = None
    peak = torch.cuda.max_memory_allocated() - before
    weights = 2 * n_words * dim
    logits = 2 * chunk * n_words
    assert peak < logits + 5 * weights + 2**21  # sum in float32 and its rounding, or two gradients
    assert all(torch.equal(a, b) for a, b in zip(*outs, strict=True))
