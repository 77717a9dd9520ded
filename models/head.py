"""The head: hidden states to logits, or straight to the loss without ever holding all logits.

T tokens, c tokens of a chunk, D model width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn

from models.layers import accumulation_dtype

IGNORED = -100
"""A target that nothing is learnt from; torch's own number for it."""


class WholeVocabulary:
    """All logits of a token are here. Where several ranks have some of them each, they answer these together."""

    def local(self, targets: Tensor, size: int) -> Tensor:
        """Targets as columns of the `size` logits that are here; out of [0, size) if they are not."""
        return targets

    def largest(self, x: Tensor) -> Tensor:
        """Of all parts' maxima."""
        return x

    def total(self, x: Tensor) -> Tensor:
        """Of all parts' sums."""
        return x


class Head(nn.Module):
    """The last projection, and the cross-entropy of what it says.

    The loss is a sum over tokens of -log p(target), nats, and not a mean: divided by the *global* token count, which is
    known before backward, it makes every reduction of gradients a plain sum, in every layout.

    Only `chunk_size` tokens' logits exist at a time. With a vocabulary of 32,768, those of 16,384 tokens would be 2 GiB
    in float32, and as much again for their gradient.
    """

    def __init__(self, dim: int, vocab_size: int, chunk_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, dim))
        self.init_std = {"weight": dim**-0.5}
        self.chunk_size = chunk_size
        self.vocabulary = WholeVocabulary()

    def forward(self, x_BSD: Tensor, targets_BS: Tensor) -> Tensor:
        """Σ of the losses of all targets that are not IGNORED: a scalar of at least float32."""
        weight_VD = self.weight.to(x_BSD.dtype)
        loss_sum: Tensor = _CrossEntropySum.apply(
            x_BSD.flatten(0, 1),
            weight_VD,
            targets_BS.flatten(),
            self.chunk_size,
            self.vocabulary,
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
        with_gradients: bool,
    ) -> Tensor:
        wide = accumulation_dtype(x_TD.dtype)
        loss_sum = torch.zeros((), dtype=wide, device=x_TD.device)
        grad_x_TD = torch.empty_like(x_TD) if with_gradients else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=wide) if with_gradients else None
        n_here = len(weight_VD)
        for start in range(0, len(x_TD), chunk_size):
            x_cD, targets_c = x_TD[start : start + chunk_size], targets_T[start : start + chunk_size]
            ignored_c1 = (targets_c == IGNORED).unsqueeze(-1)
            local_c1 = vocabulary.local(targets_c.masked_fill(ignored_c1.squeeze(-1), 0), n_here).unsqueeze(-1)
            here_c1 = (local_c1 >= 0) & (local_c1 < n_here)
            local_c1 = local_c1.masked_fill(~here_c1, 0)
            logits_cV = (x_cD @ weight_VD.T).to(wide)
            logits_cV -= vocabulary.largest(logits_cV.amax(-1, keepdim=True))
            of_target_c1 = logits_cV.gather(-1, local_c1).masked_fill(~here_c1, 0)
            exp_cV = logits_cV.exp_()
            # Both sums in one: Σ exp and the target's logit, which one part has.
            sums_2c1 = vocabulary.total(torch.stack((exp_cV.sum(-1, keepdim=True), of_target_c1)))
            loss_sum += (sums_2c1[0].log() - sums_2c1[1]).masked_fill(ignored_c1, 0).sum()
            if grad_x_TD is not None and grad_weight_VD is not None:
                # d(-log p(target)) / d(logit) = p - [it is the target]
                grad_cV = exp_cV.div_(sums_2c1[0])
                grad_cV.scatter_add_(-1, local_c1, -here_c1.to(wide))
                grad_cV = grad_cV.masked_fill_(ignored_c1, 0).to(x_TD.dtype)
                grad_x_TD[start : start + chunk_size] = grad_cV @ weight_VD
                grad_weight_VD += grad_cV.T @ x_cD
        if grad_x_TD is not None and grad_weight_VD is not None:
            ctx.save_for_backward(grad_x_TD, grad_weight_VD.to(weight_VD.dtype))
        return loss_sum

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        # In the scale's own dtype: rounded to bf16, 1 / n_tokens would be 0.2 % off for the whole network.
        grad_x_TD, grad_weight_VD = ((grad.to(scale.dtype) * scale).to(grad.dtype) for grad in ctx.saved_tensors)
        return grad_x_TD, grad_weight_VD, None, None, None, None
