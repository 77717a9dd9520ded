"""Which experts tokens took, written down in one run and imposed on another.

In float32 two correct layouts may send a token to different experts, where two scores are as good as equal: the top-k
then differs, and with it everything after. An engine that has no float64 is compared with the choices pinned.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
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


@contextmanager
def pinned(calls: list[np.ndarray], data: Axis, micro_batch_size: int) -> Iterator[None]:
    """Inside the block, routers take the choices of `calls`, made by one process in micro-batches of all ranks
    together: of each, this rank's `micro_batch_size` sequences."""
    number = count()
    mine = slice(data.rank * micro_batch_size, (data.rank + 1) * micro_batch_size)

    def impose(module: nn.Module, inputs: Any) -> None:
        if isinstance(module, Router) and module.training:
            module.pinned_BSK = torch.from_numpy(calls[next(number)][mine]).to(module.expert_bias_E.device)

    def let_go(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, Router):
            module.pinned_BSK = None

    handles = [register_module_forward_pre_hook(impose), register_module_forward_hook(let_go)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
