"""The router: which experts each token takes, with what weights; and the bias that keeps the experts' loads even.

T tokens, D model width, E experts, K experts per token.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import MoEConfig, ScoreFunction
from models.layers import Linear, accumulation_dtype


class Routing(NamedTuple):
    """A batch's choices: logical expert ids, and their weights in at least float32."""

    experts_TK: Tensor
    weights_TK: Tensor


class Router(nn.Module):
    """Scores every expert, lets `expert_bias_E` shift the *choice* only, and weighs the chosen by their own scores.

    The bias follows DeepSeek-V3 (arXiv 2412.19437, section 2.1.2). It is a buffer: no gradient moves it, see
    `update_expert_bias`.
    """

    expert_bias_E: Tensor

    def __init__(self, moe: MoEConfig, dim: int) -> None:
        super().__init__()
        self.config = moe
        self.gate = Linear(dim, moe.n_routed)
        self.register_buffer("expert_bias_E", torch.zeros(moe.n_routed))

    def reset_buffers(self) -> None:
        """Start unbiased; needed after construction on the meta device."""
        self.expert_bias_E.zero_()

    def forward(self, x_TD: Tensor) -> Routing:
        wide = accumulation_dtype(x_TD.dtype)
        logits_TE = F.linear(x_TD.to(wide), self.gate.weight.to(x_TD.dtype).to(wide))
        scores_TE = logits_TE.softmax(-1) if self.config.score is ScoreFunction.softmax else logits_TE.sigmoid()
        experts_TK = (scores_TE.detach() + self.expert_bias_E).topk(self.config.top_k, dim=-1).indices
        weights_TK = scores_TE.gather(-1, experts_TK)
        if self.config.normalise_weights:
            # Sigmoid scores of a token that no expert wants can all underflow to 0.
            weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
        return Routing(experts_TK, weights_TK * self.config.route_scale)


def update_expert_bias(bias_LE: Tensor, counts_LE: Tensor, rate: float) -> Tensor:
    """Raise the bias of experts below the mean load and lower it above, by `rate` per step: [L, E] of all MoE layers.

    `counts_LE` are tokens per expert of the whole global batch: every rank must hold the same sums, or its experts'
    choices drift apart from the others'.
    """
    counts_LE = counts_LE.to(bias_LE.dtype)
    return bias_LE + rate * torch.sign(counts_LE.mean(-1, keepdim=True) - counts_LE)
