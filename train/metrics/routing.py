"""How evenly tokens are spread over experts, and how decided the routers are: the moe/* of a row of metrics.

L MoE layers, E experts, R expert-parallel ranks.
"""

import math

import torch
from torch import Tensor

from models.config import Balance, MoEConfig
from models.placement import ExpertPlacement
from models.routing_totals import RoutingTotals


def routing_row(totals: RoutingTotals, moe: MoEConfig, placement: ExpertPlacement) -> dict[str, float]:
    """The moe/* of a step from the totals of its global batch; empty for a model without MoE layers. Waits for the
    device.

    Each is a mean over layers, but for the norm of the biases, which is over all of them. Loads count every choice,
    those that capacity dropped too.
    """
    totals = RoutingTotals(*(total.cpu() for total in totals))
    load_LE = totals.chosen_LE
    if not load_LE.numel():
        return {}
    n_pairs = load_LE.sum()
    row = {
        "moe/load_max_over_mean": _max_over_mean(load_LE),
        "moe/load_entropy": _evenness(load_LE),
        # Every layer routes every token, to top_k experts.
        "moe/router_entropy": (totals.entropy_sum_L.sum() / (n_pairs / moe.top_k)).item(),
    }
    if len(placement.slots_of_rank) > 1:
        loads_RL = [load_LE[:, list(experts)].sum(-1) for experts in placement.slots_of_rank]
        row["moe/rank_load_max_over_mean"] = _max_over_mean(torch.stack(loads_RL, -1))
    if moe.capacity_factor is not None:
        row["moe/dropped_fraction"] = (totals.dropped_LE.sum() / n_pairs).item()
    if moe.balance is Balance.bias:
        row["moe/bias_norm"] = (totals.bias_square_sum_L / totals.bias_holders_L).sum().sqrt().item()
    return row


def _max_over_mean(load_LN: Tensor) -> float:
    """1 where all loads of a layer are the same, their number where one has everything."""
    return (load_LN.amax(-1) / load_LN.mean(-1)).mean().item()


def _evenness(load_LN: Tensor) -> float:
    """Entropy of each layer's loads as shares, over that of equal ones: 1 is even (a single expert always is), 0 is all
    to one."""
    n_loads = load_LN.shape[-1]
    if n_loads == 1:
        return 1.0
    shares_LN = load_LN / load_LN.sum(-1, keepdim=True)
    return (torch.special.entr(shares_LN).sum(-1) / math.log(n_loads)).mean().item()
