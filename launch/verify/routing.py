"""Which experts tokens took, written down in one run and imposed on another.

In float32 two correct layouts may send a token to different experts, where two scores are as good as equal: the top-k
then differs, and with it everything after. An engine that has no float64 is compared with the choices pinned.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from models.router import Router, Routing
from parallel.mesh import Axis

Choices = list[list[np.ndarray]]
"""[step][call of a router]: experts of the tokens it saw, [B, S, K]. Routers are called by layer, micro-batch by
micro-batch; without recomputation, that is."""


@contextmanager
def recorded(sequence_length: int) -> Iterator[list[np.ndarray]]:
    """The choices of all training forwards inside the block, call by call."""
    calls: list[np.ndarray] = []

    def write_down(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, Router) and module.training:
            assert isinstance(output, Routing)
            experts_TK = output.experts_TK.cpu().numpy()
            calls.append(experts_TK.reshape(-1, sequence_length, experts_TK.shape[-1]))

    handle = register_module_forward_hook(write_down)
    try:
        yield calls
    finally:
        handle.remove()


@dataclass(frozen=True)
class Share:
    """Which of the choices of one process, made in micro-batches of all ranks together, are a rank's."""

    data: Axis
    micro_batch_size: int
    """Sequences of this rank's."""
    n_micro_batches: int
    recomputed: bool
    """Whether backward calls each router once more, for the same tokens."""


@contextmanager
def pinned(calls: list[np.ndarray], share: Share) -> Iterator[None]:
    """Inside the block, routers take this rank's `share` of the choices `calls`, in a step of plain accumulation."""
    n_layers = len(calls) // share.n_micro_batches
    first = share.data.rank * share.micro_batch_size
    layers: dict[nn.Module, int] = {}
    n_called: Counter[nn.Module] = Counter()

    def impose(module: nn.Module, inputs: Any) -> None:
        if isinstance(module, Router) and module.training:
            layer = layers.setdefault(module, len(layers))
            micro_batch = n_called[module] // (2 if share.recomputed else 1)
            n_called[module] += 1
            whole_BSK = torch.from_numpy(calls[micro_batch * n_layers + layer])
            module.pinned_BSK = whole_BSK.narrow(0, first, share.micro_batch_size).to(module.expert_bias_E.device)

    def let_go(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, Router):
            module.pinned_BSK = None

    handles = [register_module_forward_pre_hook(impose), register_module_forward_hook(let_go)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
