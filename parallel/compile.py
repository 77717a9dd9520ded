"""torch.compile of what a block computes between collectives: each part one graph, that nothing breaks.

    attention    norm, attention, residual, norm, router     one graph, every shape its own
    experts      the products of all slots and SwiGLU        one graph, any number of rows; as it is if fused or triton
    shared       SwiGLU                                      one graph, every shape its own

Between these, rows are put in order and travel, and the clock brackets what they are waited for: that stays as it is.
A layer's graph is the next one's too: weights are inputs of it. Hooks of data parallelism stay outside, and so does
recomputation, which calls the graph again. What is cheap backward computes again by itself: the partition of a graph
into forward and backward keeps little but products (Chen et al. 2016, as a minimum cut).

Beside blocks, the addition of gradients and their norm, which on a GPU are kernels of ours.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from models.config import ExpertBackend
from models.experts import RoutedExperts, choose_backend
from models.transformer import Transformer
from parallel.block_methods import block_methods
from parallel.gradient_norm import NormsOf
from parallel.torch_internals import norms_in_float64
from parallel.zero1 import AddUp, add_up


def compile_parts(stage: Transformer, shared_in_halves: bool, device: torch.device, dtype: torch.dtype) -> None:
    """Have `stage`'s parts compile at their first call, in place. `dtype`: of activations, on `device`."""
    # A graph break is an error, not a slower step: fullgraph.
    compiled: Callable[..., Any] = partial(torch.compile, fullgraph=True)
    for method in block_methods(stage, shared_in_halves):
        if not isinstance(method.part, RoutedExperts):
            method.wrap(partial(compiled, dynamic=False))
        elif _in_one_graph(method.part, device, dtype):
            # Of any number of rows from the first on: recomputed, it must not meet another graph than forward did.
            method.wrap(partial(compiled, dynamic=True))


def addition(compiled: bool, device: torch.device) -> AddUp:
    """How gradients of micro-batches add up."""
    if not (compiled and device.type == "cuda"):
        return add_up
    from parallel import gradient_kernel  # Triton comes with torch for CUDA alone

    return gradient_kernel.add


def measuring(compiled: bool, device: torch.device) -> NormsOf:
    """How gradients are measured."""
    if not (compiled and device.type == "cuda"):
        return norms_in_float64
    from parallel import gradient_kernel

    return gradient_kernel.norms


def _in_one_graph(routed: RoutedExperts, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products of all slots have something to fuse between them: `fused` and `triton` have done that by kernels
    of their own, and stay as they are; the loop over slots asks the device how many rows each has. On a CPU grouped_mm
    is a loop of its own when it is compiled (torch 2.13)."""
    expert_dim, dim = routed.gate_up_E2FD.shape[2:]
    rows_ND = torch.empty(0, dim, dtype=dtype, device=device)
    return device.type == "cuda" and choose_backend(routed.backend, rows_ND, expert_dim) is ExpertBackend.grouped_mm
