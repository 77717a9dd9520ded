"""CUDA graphs as a CPU has them: operators written down, and run again on the same memory.

As on a GPU nothing else is done again: no Python, no hook of autograd, and a number that the host knew is a constant. A
number that the host would ask for is an error. Memory is nobody else's afterwards, where on a GPU a pool gives it away.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

WAIT = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")


class HostWaits(RuntimeError):
    """The host asks for a number."""


class Graph:
    """What is written down."""

    def __init__(self) -> None:
        self.operators: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]] = []
        self.n_replays = 0

    @torch.no_grad()
    def replay(self) -> None:
        """Run it; the first time it has just been run."""
        self.n_replays += 1
        if self.n_replays == 1:
            return
        for operator, args, kwargs, outputs in self.operators:
            again = operator(*args, **kwargs)
            for place, made in zip(tree_leaves(outputs), tree_leaves(again), strict=True):
                if (
                    isinstance(place, Tensor)
                    and place.untyped_storage().data_ptr() != made.untyped_storage().data_ptr()
                ):
                    place.copy_(made)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class _Writing(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket.__name__ in WAIT:
            raise HostWaits(f"{function} within a graph")
        # What is written down holds memory, and no graph of autograd.
        held_args, held_kwargs = tree_map_only(Tensor, Tensor.detach, (args, kwargs or {}))
        output = function(*args, **(kwargs or {}))
        held = tree_map_only(Tensor, Tensor.detach, output)
        self._graph.operators.append((function, held_args, held_kwargs, held))
        return output


class _Stream:
    device = torch.device("cpu")

    def wait_stream(self, other: "_Stream") -> None:
        """In turn anyway."""


@contextmanager
def graphs_on_cpu() -> Iterator[list[Graph]]:
    """In place of torch's; gives those that are made."""
    made: list[Graph] = []

    def new() -> Graph:
        made.append(Graph())
        return made[-1]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.cuda, "CUDAGraph", new)
        patched.setattr(torch.cuda, "graph", lambda graph, *_, **__: _Writing(graph))
        patched.setattr(torch.cuda, "graph_pool_handle", lambda: None)
        patched.setattr(torch.cuda, "Stream", lambda device: _Stream())
        patched.setattr(torch.cuda, "current_stream", lambda device: _Stream())
        patched.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        yield made
