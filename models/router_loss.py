"""What the router adds to the objective, so that experts are loaded evenly and logits stay small.

Each loss is a sum over tokens: divided by the global token count, as the cross-entropy is, it becomes the mean that its
paper writes, and every reduction of gradients stays a plain sum. In the balancing losses the load f_e, an expert's
share of the choices times E, is a count without gradient; what learns is the mean score P_e. So a load that is counted
over all ranks needs no gradient to travel: each rank adds f_e · Σ P over its own tokens.

B sequences, S tokens, K experts per token, E experts.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from models.config import MoEConfig
from models.whole_sequence import WholeSequence


def router_loss_sum(
    moe: MoEConfig,
    logits_BSE: Tensor,
    scores_BSE: Tensor,
    experts_BSK: Tensor,
    sum_over_data_ranks: Callable[[Tensor], Tensor],
    sequence: WholeSequence,
) -> Tensor:
    """Σ over tokens of the weighted losses that `moe` asks for, a scalar of the scores' dtype.

    Sequence level: the load that each sequence's best scores would give (DeepSeek-V3, arXiv 2412.19437, section 2.1.2),
    without bias and groups: a bias that has evened out the choice would leave the loss nothing to push on. Batch
    level: the load as it is, `experts_BSK`, of this micro-batch over all data-parallel ranks (Switch Transformer, arXiv
    2101.03961, section 2.2), which `sum_over_data_ranks` adds up. z-loss: squared log-sum-exp of the logits (ST-MoE,
    arXiv 2202.08906, section 3).
    """
    total = scores_BSE.new_zeros(())
    if moe.sequence_loss_weight or moe.batch_loss_weight:
        # Sigmoid scores do not add up to 1 over the experts; as shares they do.
        shares_BSE = scores_BSE / (scores_BSE.sum(-1, keepdim=True) + 1e-20)
        shares_BE = shares_BSE.sum(1)
    if moe.sequence_loss_weight:
        best_BSK = scores_BSE.detach().topk(moe.top_k, dim=-1).indices
        counts_BE = choices(sequence.whole(best_BSK), moe.n_routed).to(shares_BE.dtype)
        total = total + moe.sequence_loss_weight * (_load(counts_BE) * shares_BE).sum()
    if moe.batch_loss_weight:
        counts_E = choices(experts_BSK, moe.n_routed).sum(0).to(shares_BE.dtype)
        load_E = _load(sum_over_data_ranks(counts_E))
        total = total + moe.batch_loss_weight * (load_E * shares_BE.sum(0)).sum()
    if moe.z_loss_weight:
        total = total + moe.z_loss_weight * logits_BSE.logsumexp(-1).square().sum()
    return total


def choices(experts_BSK: Tensor, n_experts: int) -> Tensor:
    """How often each expert was chosen in each sequence: int64 [B, E]."""
    experts_BN = experts_BSK.flatten(1)
    counts_BE = torch.zeros(len(experts_BN), n_experts, dtype=torch.int64, device=experts_BN.device)
    return counts_BE.scatter_add_(1, experts_BN, torch.ones_like(experts_BN))


def over_one_rank(counts: Tensor) -> Tensor:
    """The sum over data-parallel ranks, where there is one."""
    return counts


def _load(counts: Tensor) -> Tensor:
    """Each expert's share of the choices, times the number of experts: 1 where all are equal."""
    return counts * counts.shape[-1] / counts.sum(-1, keepdim=True)
