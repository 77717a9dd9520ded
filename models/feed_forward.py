"""SwiGLU feed-forward (Shazeer 2020): the dense layers, and the shared experts as one network of their summed width."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import Linear


class FeedForward(nn.Module):
    """down(silu(gate(x)) · up(x)): [..., D] to [..., D]. In halves, for whoever has something else to do between."""

    def __init__(self, dim: int, hidden_dim: int, residual_depth: int) -> None:
        super().__init__()
        self.gate = Linear(dim, hidden_dim)
        self.up = Linear(dim, hidden_dim)
        self.down = Linear(hidden_dim, dim, residual_depth)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.widen(x))

    def widen(self, x: Tensor) -> Tensor:
        """[..., D] to [..., F]."""
        return F.silu(self.gate(x)) * self.up(x)

    def narrow(self, wide: Tensor) -> Tensor:
        """[..., F] to [..., D]."""
        return self.down(wide)
