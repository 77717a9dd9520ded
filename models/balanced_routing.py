"""Experts dealt out to tokens, whatever their scores: the even load that a comparison of layouts may want.

    place in its sequence   0      1      2      3      4          8 experts, 2 a token
    experts                 0 1    2 3    4 5    6 7    0 1

In any part of a sequence no two experts differ by more than one pair, and in a whole one none do where E divides S·K.
A token's place is the same in every layout, and so are its experts.

B sequences, S tokens of each, K experts per token, E experts.
"""

import math

import torch
from torch import Tensor

from models.config import ModelConfig, MoEConfig, RoutingChoice


def balanced(model: ModelConfig) -> bool:
    """Whether a model's experts are dealt out."""
    return model.moe.routing is RoutingChoice.balanced


def even_length(moe: MoEConfig) -> int:
    """What a sequence's length is a multiple of, if all experts have as many of its tokens."""
    return moe.n_routed // math.gcd(moe.n_routed, moe.top_k)


def dealt_experts(moe: MoEConfig, n_sequences: int, places_S: Tensor) -> Tensor:
    """Experts of the tokens at `places_S` of their sequences, int64 [B, S, K]; no token has one twice."""
    dealt_SK = places_S.unsqueeze(-1) * moe.top_k + torch.arange(moe.top_k, device=places_S.device)
    return (dealt_SK % moe.n_routed).expand(n_sequences, -1, -1)
