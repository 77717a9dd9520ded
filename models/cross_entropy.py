"""Logits of a chunk of tokens to their losses and to the gradient: by torch's operators, or in one pass by a kernel.

    loss       log Σ exp(l) - l[target]         nats; 0 for a token whose target is IGNORED
    gradient   softmax(l) - [is the target]     of the loss by the logits; 0 for such a token

Where ranks hold parts of the vocabulary, each makes the sums of its own logits; `_settle` is all that they say to each
other, and what follows is each one's own again.

c tokens of a chunk, V the logits of a token that are here.
"""

import torch
from torch import Tensor

from models.config import LossBackend
from models.layers import accumulation_dtype
from models.triton_here import kernels_run
from models.whole_vocabulary import IGNORED, WholeVocabulary


class CrossEntropy:
    """By torch's operators."""

    def of(
        self, logits_cV: Tensor, targets_c: Tensor, vocabulary: WholeVocabulary, with_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Each token's loss in at least float32, and the gradient in the logits' dtype, which may be in their memory.

        `targets_c` are ids of the whole vocabulary, whatever part of it is here.
        """
        dtype, n_here = logits_cV.dtype, logits_cV.shape[1]
        columns_c1 = (targets_c - vocabulary.first(n_here)).unsqueeze(-1)
        ignored_c1 = (targets_c == IGNORED).unsqueeze(-1)
        here_c1 = (columns_c1 >= 0) & (columns_c1 < n_here) & ~ignored_c1
        columns_c1 = columns_c1.masked_fill(~here_c1, 0)
        logits_cV = logits_cV.to(accumulation_dtype(dtype))
        of_target_c1 = logits_cV.gather(-1, columns_c1).masked_fill(~here_c1, 0)
        largest_c1 = logits_cV.amax(-1, keepdim=True)
        exp_cV = logits_cV.sub_(largest_c1).exp_()
        sums_3c = torch.stack((largest_c1, exp_cV.sum(-1, keepdim=True), of_target_c1)).squeeze(-1)
        losses_c, factor_c = _settle(sums_3c, targets_c, vocabulary)
        if not with_gradient:
            return losses_c, None
        grad_cV = exp_cV.mul_(factor_c.unsqueeze(-1))
        grad_cV.scatter_add_(-1, columns_c1, -here_c1.to(grad_cV.dtype))
        return losses_c, grad_cV.masked_fill_(ignored_c1, 0).to(dtype)


class OnePassCrossEntropy(CrossEntropy):
    """By models/cross_entropy_kernel.py, where it runs: on a GPU, in float32 or less."""

    def of(
        self, logits_cV: Tensor, targets_c: Tensor, vocabulary: WholeVocabulary, with_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """See CrossEntropy. The gradient overwrites the logits; where it is not wanted they are only read."""
        if not self.takes(logits_cV):
            return super().of(logits_cV, targets_c, vocabulary, with_gradient)
        from models.cross_entropy_kernel import sums, write  # Triton comes with torch for CUDA alone

        first, at_once = vocabulary.first(logits_cV.shape[1]), vocabulary.is_whole
        sums_3c = sums(logits_cV, targets_c, first, with_gradient and at_once)
        losses_c, factor_c = _settle(sums_3c, targets_c, vocabulary)
        if with_gradient and not at_once:
            write(logits_cV, targets_c, first, torch.stack((sums_3c[0], factor_c)))
        return losses_c, logits_cV if with_gradient else None

    def takes(self, logits: Tensor) -> bool:
        """Whether the kernel runs there."""
        return kernels_run(logits)


def build_cross_entropy(backend: LossBackend) -> CrossEntropy:
    """By name."""
    return OnePassCrossEntropy() if backend is LossBackend.auto else CrossEntropy()


def _settle(sums_3c: Tensor, targets_c: Tensor, vocabulary: WholeVocabulary) -> tuple[Tensor, Tensor]:
    """Losses, and what turns exp(l - largest here) into probabilities; both 0 for ignored tokens.

    `sums_3c`: of the logits here, the largest, Σ exp(l - largest here), and the target's, which is 0 elsewhere.
    """
    here_c, exp_sum_c, of_target_c = sums_3c
    largest_c = vocabulary.largest(here_c.clone())
    share_c = (here_c - largest_c).exp()
    # Both sums in one: Σ exp and the target's logit, which one part has.
    total_c, target_c = vocabulary.total(torch.stack((exp_sum_c * share_c, of_target_c)))
    ignored_c = targets_c == IGNORED
    losses_c = total_c.log() - (target_c - largest_c)
    return losses_c.masked_fill(ignored_c, 0), (share_c / total_c).masked_fill(ignored_c, 0)
