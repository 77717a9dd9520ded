"""Expert capacity: how many pairs of a sequence one expert takes, and which are dropped (Lepikhin et al. 2020, GShard).

Per sequence, so that no layout changes what is dropped: a sequence is never split over data-parallel ranks. First come,
first served: what happens to a token depends on those before it only, in training as when text is generated; a choice
by score would let later tokens push earlier ones out.

B sequences, S tokens, K experts per token, E experts.
"""

import math
from fractions import Fraction

import torch
from torch import Tensor


def expert_capacity(factor: float, sequence_length: int, top_k: int, n_experts: int) -> int:
    """Pairs that an expert takes of a sequence: `factor` times the even share, rounded up."""
    # The factor as it was typed: in floats 1.1 x 100 x 2 / 10 is a little more than 22, and would be rounded up to 23.
    # No expert is given more than a token's one pair.
    return min(sequence_length, math.ceil(Fraction(str(factor)) * sequence_length * top_k / n_experts))


def within_capacity(experts_BSK: Tensor, n_experts: int, capacity: int) -> Tensor:
    """Which (token, expert) pairs are among their expert's first `capacity` of the sequence: bool [B, S, K]."""
    experts_BN = experts_BSK.flatten(1)
    # Stable, so that an expert's pairs stay in the order of their tokens; their place among them is their rank.
    sorted_BN, order_BN = experts_BN.sort(dim=1, stable=True)
    experts_BE = torch.arange(n_experts, device=experts_BN.device).repeat(len(experts_BN), 1)
    starts_BE = torch.searchsorted(sorted_BN, experts_BE)
    places_BN = torch.arange(sorted_BN.shape[1], device=experts_BN.device) - starts_BE.gather(1, sorted_BN)
    kept_BN = torch.empty_like(places_BN, dtype=torch.bool).scatter_(1, order_BN, places_BN < capacity)
    return kept_BN.view_as(experts_BSK)
