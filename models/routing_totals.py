"""What the routers of all MoE layers did in a step, as sums: over micro-batches here, then over stages and ranks.

L MoE layers of the whole model, E experts.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor


class RoutingTotals(NamedTuple):
    """Float64, which holds counts exactly up to 2^53; 0 for the layers of other stages, so that all parts add up."""

    chosen_LE: Tensor
    """(token, expert) pairs per logical expert."""
    dropped_LE: Tensor
    """Those beyond the expert's capacity, of the chosen."""
    entropy_sum_L: Tensor
    """Σ over tokens of the entropy of a token's scores as shares, nats."""
    bias_square_sum_L: Tensor
    """Σ over experts of their squared balancing biases, as the choices of this step saw them; once for each holder."""
    bias_holders_L: Tensor
    """How many hold the layer, and have added its biases: what the sum of their squares is to be divided by."""

    @classmethod
    def zeros(cls, n_layers: int, n_experts: int, device: torch.device) -> Self:
        """Nothing yet."""
        return cls.unpack(torch.zeros(n_layers, 2 * n_experts + 3, dtype=torch.float64, device=device))

    def pack(self) -> Tensor:
        """[L, 2E + 3]: one tensor, to be added up in one collective."""
        return torch.cat((self.chosen_LE, self.dropped_LE, torch.stack(self[2:], -1)), -1)

    @classmethod
    def unpack(cls, packed_LN: Tensor) -> Self:
        """Views of what `pack` gave."""
        n_experts = (packed_LN.shape[-1] - 3) // 2
        chosen_LE, dropped_LE, further_L3 = packed_LN.split((n_experts, n_experts, 3), -1)
        return cls(chosen_LE, dropped_LE, *further_L3.unbind(-1))
