"""`python -m harness.kernel_beside_cross_entropy [cuda]`: heads whose loss is by models/cross_entropy_kernel.py beside
torch's operators in float64, with torch's own error in the same dtype as the yardstick.

T tokens, D model width, V vocabulary, v a part of it.
"""

import sys
from itertools import pairwise

import torch
from torch import Tensor

from models import cross_entropy_kernel
from models.cross_entropy import OnePassCrossEntropy
from models.head import Head
from models.whole_vocabulary import IGNORED, WholeVocabulary

NAMES = ("loss", "loss without gradient", "gradient of x", "gradient of weight")
"""Of `results`."""
SCALE = 1 / 3
"""Of the loss: 0.13 % less in bfloat16."""


class Everywhere(OnePassCrossEntropy):
    """By the kernel, whatever the device: Triton's interpreter has a CPU."""

    def takes(self, logits: Tensor) -> bool:
        """All of it."""
        return True


class Part(WholeVocabulary):
    """Columns from `begins` on are here; what other ranks have is `others_TX`, and they answer at once."""

    is_whole = False

    def __init__(self, begins: int, others_TX: Tensor, others_targets_T: Tensor) -> None:
        self._begins, self._others_TX, self._targets_T = begins, others_TX, others_targets_T
        self._answered = 0

    def first(self, size: int) -> int:
        """Parts need not be equal."""
        return self._begins

    def largest(self, x: Tensor) -> Tensor:
        """Of `x` and the other part's of the same tokens."""
        self._rows = slice(self._answered, self._answered + len(x))
        self._answered += len(x)
        self._largest_c = torch.maximum(x, self._others_TX[self._rows].amax(-1))
        return self._largest_c

    def total(self, x: Tensor) -> Tensor:
        """Of `x` and the other part's sums of the same tokens."""
        exp_cX = (self._others_TX[self._rows] - self._largest_c.unsqueeze(-1)).exp()
        return x + torch.stack((exp_cX.sum(-1), self._targets_T[self._rows]))


def results(head: Head, x_TD: Tensor, targets_T: Tensor, vocabulary: WholeVocabulary | None = None) -> list[Tensor]:
    """Losses with and without gradients, and these, of a loss times SCALE."""
    x_TD = x_TD.detach().requires_grad_()
    head.vocabulary = vocabulary or WholeVocabulary()
    loss = head(x_TD.unsqueeze(0), targets_T.unsqueeze(0))
    grads = torch.autograd.grad(loss * SCALE, (x_TD, head.weight))
    with torch.no_grad():
        # `Part` answers once.
        alone = loss if vocabulary is not None else head(x_TD.unsqueeze(0), targets_T.unsqueeze(0))
    return [out.detach().double() for out in (loss, alone, *grads)]


def results_of_parts(head: Head, x_TD: Tensor, targets_T: Tensor) -> list[Tensor]:
    """`results`, where two ranks have 2/5 and 3/5 of the vocabulary: losses of the first, all else of both."""
    whole_VD, n = head.weight, len(head.weight)
    logits_TV = (x_TD @ whole_VD.detach().T).float()
    bounds, outs = (0, 2 * n // 5, n), []
    for begin, end in pairwise(bounds):
        elsewhere = torch.ones(n, dtype=torch.bool, device=x_TD.device)
        elsewhere[begin:end] = False
        there_T = (targets_T != IGNORED) & ((targets_T < begin) | (targets_T >= end))
        theirs_T = logits_TV.gather(-1, targets_T.clamp(min=0).unsqueeze(-1)).squeeze(-1).masked_fill(~there_T, 0)
        part = Head(whole_VD.shape[1], end - begin, head.chunk_size)
        part.weight = torch.nn.Parameter(whole_VD.detach()[begin:end].clone())
        part.cross_entropy = head.cross_entropy
        outs.append(results(part, x_TD, targets_T, Part(begin, logits_TV[:, elsewhere], theirs_T)))
    (loss, alone, of_x, of_weight), (other_loss, _, of_x_too, of_rest) = outs
    # A product of a part of the vocabulary may round other logits up than the product of all.
    near = 1e-6 if x_TD.dtype is torch.float32 else 1e-4
    assert (loss - other_loss).abs() <= near * loss.abs()
    return [loss, alone, of_x + of_x_too, torch.cat((of_weight, of_rest))]


def compare(device: str, n_tokens: int, dim: int, n_words: int, chunk: int, spread: float) -> None:
    """`spread`: about how far logits reach."""
    generator = torch.Generator().manual_seed(n_words)
    weight_VD = torch.randn(n_words, dim, generator=generator) * dim**-0.5
    x_TD = torch.randn(n_tokens, dim, generator=generator) * spread
    targets_T = torch.randint(0, n_words, (n_tokens,), generator=generator)
    targets_T[1::5] = IGNORED
    targets_T[0], targets_T[-1] = 0, n_words - 1
    weight_VD, x_TD, targets_T = weight_VD.to(device), x_TD.to(device), targets_T.to(device)
    # The interpreter cuts off what bfloat16 has no place for, where a GPU rounds.
    for dtype in (torch.float32, torch.bfloat16) if device == "cuda" else (torch.float32,):
        outs = []
        for of, everywhere in ((torch.float64, False), (dtype, False), (dtype, True)):
            head = Head(dim, n_words, chunk)
            # All start from what `dtype` holds of x and of the weight.
            head.weight = torch.nn.Parameter(weight_VD.to(dtype).to(of))
            head.cross_entropy = Everywhere() if everywhere else head.cross_entropy
            outs.append((head, x_TD.to(dtype).to(of)))
        exact, plain, ours = (results(head, x, targets_T) for head, x in outs)
        parts = results_of_parts(*outs[2], targets_T)
        for what, result in (("whole", ours), ("parts", parts)):
            for name, e, p, o in zip(NAMES, exact, plain, result, strict=True):
                error, yardstick = (o - e).norm().item(), (p - e).norm().item()
                # Two parts' gradients of x are rounded twice and added up.
                slack = 1.5 if what == "whole" else 2.5
                said = f"{what}, V={n_words}, chunk={chunk}, {name} in {dtype}: {error} beside {yardstick}"
                assert error <= slack * yardstick + 1e-6 * e.norm().item(), said
        # A scale rounded to bfloat16 is a factor that all numbers share; they are rounded too, and must be many.
        for e, o in zip(exact[2:], ours[2:], strict=True):
            if dtype is torch.float32 or e.numel() >= 2**17:
                assert abs((e * o).sum() / e.square().sum() - 1).item() < 5e-4


def check_reads_only(device: str) -> None:
    """Without `writes` logits stay; with it they are the gradient, and of an ignored token 0, whatever it was."""
    logits_cV = torch.randn(3, 21, device=device)
    logits_cV[1] = float("nan")
    targets_c, before_cV = torch.tensor([4, IGNORED, 20], device=device), logits_cV.clone()
    sums_3c = cross_entropy_kernel.sums(logits_cV, targets_c, 0, writes=False)
    assert torch.equal(logits_cV.nan_to_num(7), before_cV.nan_to_num(7))
    again_3c = cross_entropy_kernel.sums(logits_cV, targets_c, 0, writes=True)
    assert torch.equal(sums_3c[:, ::2], again_3c[:, ::2])
    expected_cV = before_cV.softmax(-1)
    expected_cV[0, 4] -= 1
    expected_cV[2, 20] -= 1
    expected_cV[1] = 0
    torch.testing.assert_close(logits_cV, expected_cV, rtol=1e-5, atol=1e-6)
    # What is not finite is seen, not hidden.
    broken_cV = torch.zeros(1, 21, device=device)
    broken_cV[0, 7] = float("nan")
    assert cross_entropy_kernel.sums(broken_cV, targets_c[:1], 0, writes=True)[1].isnan().all()
    assert broken_cV.isnan().all()


def main(device: str) -> None:
    """Raises AssertionError where they differ."""
    check_reads_only(device)
    for chunk in (100, 13, 4):
        compare(device, 13, 24, 37, chunk, 3.0)
    compare(device, 5, 8, 8192, 2, 30.0)
    compare(device, 4, 8, 20_001, 4, 3.0)  # several blocks, the last one ragged
    if device == "cuda":
        compare(device, 1000, 256, 32_768, 384, 3.0)
        compare(device, 64, 128, 151_936, 64, 3.0)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cpu")
