"""Forward and backward as CUDA graphs: the host launches two graphs a micro-batch, and no kernel by itself.

    step      1, 2             3                                  4, 5, …
    inputs                     copied in                          copied in
    host      F0 B0 F1 B1      F0 written down, launched; B0 …    │F0│B0│F1│B1│      a launch each
    device    F0 B0 F1 B1                F0          B0 …         F0  B0  F1  B1    the same kernels, the same addresses
    after                      gradients' places are kept         gradients are where they were; Python is told

In the first steps kernels compile, and libraries take the memory that they keep. What is written down is a walk of
parallel/pipeline/executor.py, action by action, into one pool of memory: an activation that B0 has freed F1 takes, as
without graphs. So graphs are launched in the order in which they were written down, whole steps of them, and a pool is
nobody else's: what it took at its largest it keeps between steps, where the update cannot have it.

Between two graphs the clock enters its phases, and after the last one gradients are reduced and weights move, as they
would. Beside gradients Python does nothing within an action that a later one, or the update, sees: counts of the
routers are added to in place. A number that the host knows is a constant of a graph; a step that has another one (a
loss that is spoilt on purpose, a batch of another shape) is done as the first ones were, in memory beside the pool.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.transformer import Batch
from parallel.clock.phase_clock import Clock, Phase
from parallel.gradient_sync import Remade
from parallel.pipeline.executor import Executor
from parallel.pipeline.loss_scale import LossScale
from parallel.settling import WARM_UP


class _Inputs(NamedTuple):
    """What a step is given."""

    tensors: list[Tensor]
    """On the device."""
    constants: tuple[Any, ...]
    """All else: shapes, dtypes, and the host's numbers."""

    @classmethod
    def of(cls, batches: Sequence[Batch], scale: LossScale) -> "_Inputs":
        """NaN is unlike itself: steps with such a number have none in common."""
        given = [item for batch in batches for item in batch] + [scale.n_targets, scale.n_tokens]
        tensors = [item for item in given if isinstance(item, Tensor)]
        return cls(tensors, tuple((t.shape, t.dtype) if isinstance(t, Tensor) else t for t in given))


@dataclass(frozen=True)
class _Written:
    """A step, to be done again."""

    inputs: _Inputs
    """Where graphs read them."""
    graphs: list[tuple[Phase, torch.cuda.CUDAGraph]]
    losses: Tensor
    """Where they add them up, [2]."""
    gradients: list[Tensor]
    """Where the sums of all micro-batches are, after the last graph."""


class GraphedSteps:
    """`Executor.forward_backward`, of one stage on one rank that asks no other for anything."""

    def __init__(self, executor: Executor, gradients: Remade, clock: Clock, device: torch.device) -> None:
        self._executor, self._gradients, self._clock = executor, gradients, clock
        # On the default stream nothing can be written down. What runs as it is runs there too: autograd adds a weight's
        # gradients up on the stream of its first use, and a library keeps memory for each stream.
        self._side = torch.cuda.Stream(device)
        self._before: tuple[Any, ...] | None = None
        self._n_alike = 0
        """Steps in a row with the constants of `_before`."""
        self._written: _Written | None = None
        self.wrote = False
        """Whether the last step was the one that was written down: its pool is as large as it gets."""

    def forward_backward(self, batches: Sequence[Batch], scale: LossScale) -> Tensor:
        """See Executor."""
        inputs, self.wrote = _Inputs.of(batches, scale), False
        if self._written is not None:
            if inputs.constants == self._written.inputs.constants:
                return self._launch(self._written, inputs.tensors)
        else:
            self._n_alike = self._n_alike + 1 if inputs.constants == self._before else 1
            self._before = inputs.constants
            if self._n_alike > WARM_UP:
                return self._write(inputs, batches, scale)
        return self._executor.forward_backward(batches, scale, self._aside)

    def _aside(self, action: Callable[[], None]) -> None:
        """Do it on the side stream, in turn."""
        here = torch.cuda.current_stream(self._side.device)
        self._side.wait_stream(here)
        with torch.cuda.stream(self._side):
            action()
        here.wait_stream(self._side)

    def _write(self, inputs: _Inputs, batches: Sequence[Batch], scale: LossScale) -> Tensor:
        """A step, of which each action is a graph before it is done."""
        kept = _Inputs([tensor.clone() for tensor in inputs.tensors], inputs.constants)
        places = iter(kept.tensors)

        def place(item: Any) -> Any:
            return next(places) if isinstance(item, Tensor) else item

        batches = [Batch(*map(place, batch)) for batch in batches]
        scale = LossScale(place(scale.n_targets), scale.n_tokens)
        graphs: list[tuple[Phase, torch.cuda.CUDAGraph]] = []
        pool = torch.cuda.graph_pool_handle()

        def write(action: Callable[[], None]) -> None:
            graph = torch.cuda.CUDAGraph()
            # Other threads may ask the driver for what they like meanwhile: memory for the next batch, whether a
            # collective is over.
            with torch.cuda.graph(graph, pool, self._side, capture_error_mode="thread_local"):
                action()
            graph.replay()
            graphs.append((self._clock.phase, graph))

        gc.collect()  # or what is left of an earlier backward could be met in this one
        losses = self._executor.forward_backward(batches, scale, write)
        self.wrote = True
        self._written = _Written(kept, graphs, losses, self._gradients.sums())
        return losses.clone()

    def _launch(self, written: _Written, tensors: Sequence[Tensor]) -> Tensor:
        for place, tensor in zip(written.inputs.tensors, tensors, strict=True):
            place.copy_(tensor)
        written.losses.zero_()
        for phase, graph in written.graphs:
            self._clock.enter(phase)
            graph.replay()
        self._gradients.take_sums(written.gradients)
        return written.losses.clone()
