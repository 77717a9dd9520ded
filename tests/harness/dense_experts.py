"""Small routed experts, and the dense computation that they must equal: every expert over every token."""

import torch
import torch.nn.functional as F

from models.config import ExpertBackend, MoEConfig
from models.experts import RoutedExperts
from models.router import Routing

T, D, F_, E, K = 23, 16, 8, 5, 3


def experts(backend: ExpertBackend, dtype: torch.dtype, slots: tuple[int, ...]) -> RoutedExperts:
    module = RoutedExperts(MoEConfig(n_routed=E, expert_dim=F_), D, 1, slots, backend).to(dtype)
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
    return module


def dense(x_TD: torch.Tensor, module: RoutedExperts, route: Routing) -> torch.Tensor:
    """Every expert over every token, then the chosen ones' weighted sum."""
    slot_of = {e: slot for slot, e in enumerate(module.expert_of_slot)}
    y_TD = torch.zeros_like(x_TD)
    for t in range(T):
        for k in range(K):
            slot = slot_of[int(route.experts_TK[t, k])]
            (gate, up), down = module.gate_up_E2FD[slot], module.down_EDF[slot]
            y_TD[t] += route.weights_TK[t, k] * (down @ (F.silu(gate @ x_TD[t]) * (up @ x_TD[t])))
    return y_TD
