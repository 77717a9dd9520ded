"""The router: which experts each token takes, with what weights; and the bias that keeps the experts' loads even.

B sequences, S tokens of each, T = B·S, D model width, E experts, G groups, K experts per token.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.balanced_routing import dealt_experts
from models.capacity import expert_capacity, within_capacity
from models.config import GroupScore, MoEConfig, RoutingChoice, ScoreFunction
from models.layers import Linear
from models.router_loss import over_one_rank, router_loss_sum
from models.whole_sequence import WholeSequence
from models.wide_product import wide_linear


class Routing(NamedTuple):
    """A micro-batch's choices: logical expert ids, and their weights in at least float32."""

    experts_TK: Tensor
    weights_TK: Tensor
    kept_TK: Tensor | None = None
    """False for the pairs beyond their expert's capacity, which no expert sees; None: all are kept."""
    loss_sum: Tensor | None = None
    """What the router adds to the objective, summed over tokens; None outside training, or if it adds nothing."""
    entropy_sum: Tensor | None = None
    """See `score_entropy_sum`; None outside training."""


class Router(nn.Module):
    """Scores every expert, lets `expert_bias_E` shift the *choice* only, and weighs the chosen by their own scores.

    The bias follows DeepSeek-V3 (arXiv 2412.19437, section 2.1.2). It is a buffer: no gradient moves it, see
    `update_expert_bias`. Choices limited to groups of experts are DeepSeek-V2's (arXiv 2405.04434, section 2.2.2).
    `sum_over_data_ranks` adds a tensor up over the ranks that see other tokens of the micro-batch; `sequence` knows the
    choices for the rest of each sequence, where this rank has a part of it.
    """

    expert_bias_E: Tensor

    def __init__(
        self,
        moe: MoEConfig,
        dim: int,
        sum_over_data_ranks: Callable[[Tensor], Tensor] = over_one_rank,
        sequence: WholeSequence | None = None,
    ) -> None:
        super().__init__()
        self.config = moe
        self.sum_over_data_ranks = sum_over_data_ranks
        self.sequence = sequence or WholeSequence()
        self.pinned_BSK: Tensor | None = None
        """What tokens are to choose, whatever their scores; their weights are by score all the same."""
        self.gate = Linear(dim, moe.n_routed)
        self.register_buffer("expert_bias_E", torch.zeros(moe.n_routed))

    def reset_buffers(self) -> None:
        """Start unbiased; needed after construction on the meta device."""
        self.expert_bias_E.zero_()

    def forward(self, x_BSD: Tensor) -> Routing:
        moe = self.config
        logits_BSE = wide_linear(x_BSD, self.gate.weight.to(x_BSD.dtype))
        scores_BSE = logits_BSE.softmax(-1) if moe.score is ScoreFunction.softmax else logits_BSE.sigmoid()
        experts_BSK = self.pinned_BSK
        if experts_BSK is None and moe.routing is RoutingChoice.balanced:
            experts_BSK = dealt_experts(moe, len(x_BSD), self.sequence.places(x_BSD.shape[1], x_BSD.device))
        elif experts_BSK is None:
            experts_BSK = self._choose(scores_BSE.detach() + self.expert_bias_E)
        weights_BSK = scores_BSE.gather(-1, experts_BSK)
        if moe.normalise_weights:
            # Sigmoid scores of a token that no expert wants can all underflow to 0.
            weights_BSK = weights_BSK / (weights_BSK.sum(-1, keepdim=True) + 1e-20)
        kept_BSK = loss_sum = None
        if moe.capacity_factor is not None:
            whole_BSK = self.sequence.whole(experts_BSK)
            capacity = expert_capacity(moe.capacity_factor, whole_BSK.shape[1], moe.top_k, moe.n_routed)
            kept_BSK = self.sequence.own(within_capacity(whole_BSK, moe.n_routed, capacity))
        if self.training and moe.has_router_loss:
            loss_sum = router_loss_sum(
                moe, logits_BSE, scores_BSE, experts_BSK, self.sum_over_data_ranks, self.sequence
            )
        return Routing(
            experts_BSK.flatten(0, 1),
            weights_BSK.flatten(0, 1) * moe.route_scale,  # no view at the end: FSDP2 warns of outputs that are
            kept_BSK.flatten(0, 1) if kept_BSK is not None else None,
            loss_sum,
            # Last, and nothing of it is saved for backward: where this is recomputed, torch has stopped before.
            score_entropy_sum(scores_BSE) if self.training else None,
        )

    def _choose(self, preference_BSE: Tensor) -> Tensor:
        moe = self.config
        if moe.groups_per_token < moe.n_groups:
            preference_BSGe = preference_BSE.unflatten(-1, (moe.n_groups, -1))
            n_best = 2 if moe.group_score is GroupScore.two_best else 1
            ranks_BSG = preference_BSGe.topk(n_best, dim=-1).values.sum(-1)
            chosen = ranks_BSG.topk(moe.groups_per_token, dim=-1).indices
            closed_BSG = torch.ones_like(ranks_BSG, dtype=torch.bool).scatter_(-1, chosen, False)
            preference_BSE = preference_BSGe.masked_fill(closed_BSG.unsqueeze(-1), float("-inf")).flatten(-2)
        return preference_BSE.topk(moe.top_k, dim=-1).indices


@torch.no_grad()
def score_entropy_sum(scores_BSE: Tensor) -> Tensor:
    """Σ over tokens of the entropy of their scores as shares of the token's sum, nats; float64, no gradient.

    ln E for a token to which all experts are alike, 0 for one that wants a single expert.
    """
    shares_BSE = scores_BSE / (scores_BSE.sum(-1, keepdim=True) + 1e-20)  # sigmoid scores can all underflow to 0
    return torch.special.entr(shares_BSE).sum(-1).sum(dtype=torch.float64)


def update_expert_bias(bias_LE: Tensor, counts_LE: Tensor, rate: float) -> Tensor:
    """Raise the bias of experts below the mean load and lower it above, by `rate` per step: [L, E] of all MoE layers.

    `counts_LE` are tokens per expert of the whole global batch: every rank must hold the same sums, or its experts'
    choices drift apart from the others'.
    """
    counts_LE = counts_LE.to(bias_LE.dtype)
    return bias_LE + rate * torch.sign(counts_LE.mean(-1, keepdim=True) - counts_LE)
