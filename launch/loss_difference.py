"""How far two losses of one step are apart, where either may be no number."""

import math


def loss_difference(one: float, other: float) -> float:
    """|one - other|; infinite if they are not finite in the same way: one alone, or another infinity."""
    if math.isfinite(one) and math.isfinite(other):
        return abs(one - other)
    return 0.0 if (one == other or (math.isnan(one) and math.isnan(other))) else math.inf
