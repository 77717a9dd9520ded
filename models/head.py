"""The head: hidden states to logits, or straight to the loss without ever holding all logits.

T tokens, c tokens of a chunk, D model width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn

from models.config import LossBackend
from models.cross_entropy import CrossEntropy, build_cross_entropy
from models.layers import accumulation_dtype
from models.whole_vocabulary import WholeVocabulary
from models.wide_product import add_product_


class Head(nn.Module):
    """The last projection, and the cross-entropy of what it says.

    The loss is a sum over tokens of -log p(target), nats, and not a mean: divided by the *global* token count, which is
    known before backward, it makes every reduction of gradients a plain sum, in every layout.

    Only `chunk_size` tokens' logits exist at a time. With a vocabulary of 32,768, those of 16,384 tokens would be 2 GiB
    in float32, and as much again for their gradient.
    """

    def __init__(
        self, dim: int, vocab_size: int, chunk_size: int, loss_backend: LossBackend = LossBackend.auto
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, dim))
        self.init_std = {"weight": dim**-0.5}
        self.chunk_size = chunk_size
        self.vocabulary = WholeVocabulary()
        self.cross_entropy = build_cross_entropy(loss_backend)

    def forward(self, x_BSD: Tensor, targets_BS: Tensor) -> Tensor:
        """Σ of the losses of all targets that are not IGNORED: a scalar of at least float32."""
        weight_VD = self.weight.to(x_BSD.dtype)
        loss_sum: Tensor = _CrossEntropySum.apply(
            x_BSD.flatten(0, 1),
            weight_VD,
            targets_BS.flatten(),
            self.chunk_size,
            self.vocabulary,
            self.cross_entropy,
            torch.is_grad_enabled(),
        )
        return loss_sum

    def logits(self, x_BSD: Tensor) -> Tensor:
        """[B, S, V], in the dtype of `x_BSD`."""
        return x_BSD @ self.weight.to(x_BSD.dtype).T


class _CrossEntropySum(torch.autograd.Function):
    """Gradients are made in forward, while a chunk's logits are there, for both need the softmax; backward only scales
    what is kept, [T, D] and [V, D]. The products are as many as without chunks: three."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        weight_VD: Tensor,
        targets_T: Tensor,
        chunk_size: int,
        vocabulary: WholeVocabulary,
        cross_entropy: CrossEntropy,
        with_gradients: bool,
    ) -> Tensor:
        n_tokens, wide = len(x_TD), accumulation_dtype(x_TD.dtype)
        losses_T = torch.empty(n_tokens, dtype=wide, device=x_TD.device)
        grad_x_TD = torch.empty_like(x_TD) if with_gradients else None
        # A sum of several products stands still in bf16; a single one is rounded once.
        sum_dtype = wide if n_tokens > chunk_size else weight_VD.dtype
        make = torch.empty_like if n_tokens else torch.zeros_like
        grad_weight_VD = make(weight_VD, dtype=sum_dtype) if with_gradients else None
        for start in range(0, n_tokens, chunk_size):
            chunk = slice(start, start + chunk_size)
            losses_T[chunk], grad_cV = cross_entropy.of(
                x_TD[chunk] @ weight_VD.T, targets_T[chunk], vocabulary, with_gradients
            )
            if grad_x_TD is not None and grad_weight_VD is not None and grad_cV is not None:
                torch.mm(grad_cV, weight_VD, out=grad_x_TD[chunk])
                add_product_(grad_weight_VD, grad_cV.T, x_TD[chunk], first=start == 0)
            grad_cV = None  # before there are logits of the next chunk
        if grad_x_TD is not None and grad_weight_VD is not None:
            ctx.save_for_backward(grad_x_TD, grad_weight_VD.to(weight_VD.dtype))
        return losses_T.sum()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        # In the scale's own dtype: rounded to bf16, 1 / n_tokens would be 0.2 % off for the whole network. On CUDA
        # torch rounds a scale of no dimensions to the other's dtype first; one of [1] makes the product float32, which
        # `out` has rounded in the same kernel.
        grad_x_TD, grad_weight_VD = (
            torch.mul(grad, scale.view(1), out=torch.empty_like(grad)) for grad in ctx.saved_tensors
        )
        return grad_x_TD, grad_weight_VD, None, None, None, None, None
