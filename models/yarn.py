"""YaRN (Peng et al. 2023, arXiv 2309.00071): rotary frequencies for a longer context than the model was trained on.

A pair that turns often within the first training's context keeps its frequency, since it tells neighbours apart; one
that turns less than once there has it divided by the factor, so that no unseen angle comes; those between are blended.
Attention is sharpened a little, as DeepSeek-V2 does it: part of it on the rotated widths, part on all scores.
"""

import math

import torch
from torch import Tensor

from models.config import YarnConfig


def stretch(frequency_R: Tensor, theta: float, yarn: YarnConfig) -> Tensor:
    """The frequencies [R/2] of base `theta` for a context `yarn.factor` times as long."""
    if yarn.factor == 1:
        return frequency_R
    n_pairs = len(frequency_R)
    # The pair that turns `turns` times within the original context: frequency x length = 2 pi x turns, solved for i.
    first, last = (
        n_pairs * math.log(yarn.original_length / (turns * 2 * math.pi)) / math.log(theta)
        for turns in (yarn.beta_fast, yarn.beta_slow)
    )
    first, last = max(math.floor(first), 0), min(math.ceil(last), 2 * n_pairs - 1)
    pairs_R = torch.arange(n_pairs, dtype=frequency_R.dtype, device=frequency_R.device)
    divided_R = ((pairs_R - first) / max(last - first, 1e-3)).clamp(0, 1)
    return frequency_R * (1 - divided_R) + frequency_R / yarn.factor * divided_R


def amplitude(yarn: YarnConfig) -> float:
    """Factor on the rotated part of every query and key."""
    return _growth(yarn.factor, yarn.mscale) / _growth(yarn.factor, yarn.mscale_all_dim)


def score_factor(yarn: YarnConfig) -> float:
    """Factor on every attention score."""
    return _growth(yarn.factor, yarn.mscale_all_dim) ** 2


def _growth(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0
