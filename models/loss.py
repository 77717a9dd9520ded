"""Next-token cross-entropy. V vocabulary."""

import torch.nn.functional as F
from torch import Tensor

from models.layers import accumulation_dtype


def cross_entropy_sum(logits_BSV: Tensor, targets_BS: Tensor) -> Tensor:
    """Σ over tokens of -log p(target), nats, a scalar of at least float32.

    A sum, not a mean: divided by the *global* token count, which is known before backward, it makes every reduction of
    gradients a plain SUM, in every layout.
    """
    wide = accumulation_dtype(logits_BSV.dtype)
    return F.cross_entropy(logits_BSV.flatten(0, -2).to(wide), targets_BS.flatten(), reduction="sum")
