"""What losses are divided by."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LossScale:
    """What this rank's sums are divided by, so that the ranks' gradients add up to those of the mean."""

    n_targets: Tensor | float
    """Of the global batch."""
    n_tokens: float
    """Of the global batch."""
