"""The private torch APIs that we use, each with its reason: all but one of models/fp8_linear.py, as models import
nothing from here.

Checked on torch 2.11 and 2.13; a new torch is first tried against this file's tests.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

# Memory of GPUs of one host that address each other's, in alpha in torch.
import torch.distributed._symmetric_memory as symmetric
from torch import Tensor, nn

# What torch.autograd.grad calls once it has looked its arguments over.
from torch.autograd.graph import GradientEdge, _engine_run_backward, get_gradient_edge
from torch.distributed import ProcessGroup
from torch.distributed.fsdp import FSDPModule, fully_shard

# FSDP2's own collectives and waits, which no public hook shows.
from torch.distributed.fsdp._fully_shard import _fsdp_collectives, _fsdp_param_group

# Which weights a split backward puts off, and where; reached otherwise only through torch's own pipeline runtime.
from torch.distributed.pipelining._backward import construct_reverse_graph, get_param_groups
from torch.distributed.pipelining.schedules import get_schedule_class
from torch.distributed.tensor import DTensor

# Where a DTensor's local shard lies in the whole. Uneven shards make this more than rank x size, torch computes it for
# its own checkpoints, and there is no public name for it.
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

# Sees every operator that runs, FSDP2's collectives among them, of which no public hook tells all (there is none for
# HSDP's all-reduce). Autograd takes it along into its own threads.
from torch.utils._python_dispatch import TorchDispatchMode


def local_offset(tensor: DTensor) -> tuple[int, ...]:
    """Where the local part of `tensor` begins in the whole."""
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(offset)


def norms_in_float64(tensors: Sequence[Tensor]) -> list[Tensor]:
    """2-norm of each of `tensors`, of one device, summed in float64.

    One launch for hundreds of gradients, of each dtype. torch's own clipping is built on this; its public face,
    torch.nn.utils.get_total_norm, has no dtype to sum in.
    """
    norms: dict[int, Tensor] = {}
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        alike = {i: tensor for i, tensor in enumerate(tensors) if tensor.dtype is dtype}
        norms |= dict(zip(alike, torch._foreach_norm(list(alike.values()), 2, torch.float64), strict=True))
    return [norms[i] for i in range(len(tensors))]


def scale_in_place(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply all of `tensors` by a scalar that is still on the device, in one launch, with no wait for its value."""
    torch._foreach_mul_(list(tensors), factor)


INPUT_AND_GROUP = {
    "_allgather_base_": ("all_gather", 1, 2),
    "_reduce_scatter_base_": ("reduce_scatter", 1, 2),
    "allreduce_": ("all_reduce", 0, 1),
}
"""By operator of torch.ops.c10d: what we call it, and which of its arguments are what goes in and the group."""


class CollectiveObserver(TorchDispatchMode):
    """While entered, tells `seen` of the collectives that FSDP2 is made of, whoever issues one: (all_gather,
    reduce_scatter or all_reduce; group size; bytes that this rank puts in)."""

    def __init__(self, seen: Callable[[str, int, int], None]) -> None:
        super().__init__()
        self._seen = seen

    @classmethod
    def is_infra_mode(cls) -> bool:
        """It changes nothing: else torch.compile would not compile while it looks on."""
        return True

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "c10d" and function.overloadpacket.__name__ in INPUT_AND_GROUP:
            operation, input_at, group_at = INPUT_AND_GROUP[function.overloadpacket.__name__]
            tensors = args[input_at] if isinstance(args[input_at], list) else [args[input_at]]
            n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            self._seen(operation, ProcessGroup.unbox(args[group_at]).size(), n_bytes)
        return function(*args, **(kwargs or {}))


def graphs_made() -> tuple[int, int]:
    """By torch.compile in this process so far: graphs, and breaks of graphs. Public are only texts about them
    (TORCH_LOGS, torch.compiler.reset). What nobody compiled with is not imported for it: that takes seconds."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    if dynamo is None:
        return 0, 0
    return dynamo.counters["stats"]["unique_graphs"], sum(dynamo.counters["graph_break"].values())


Issuing = Callable[[str], AbstractContextManager[None]]
"""What to enter around the start of an operation of FSDP2's."""
Waiting = Callable[[str, ProcessGroup, bool], AbstractContextManager[None]]
"""What to enter around a wait for an operation, by its group; true, if that is over already."""


@contextmanager
def fsdp_watched(issuing: Issuing, waiting: Waiting, compute: torch.cuda.Stream | None) -> Iterator[None]:
    """Let FSDP2 enter `issuing` around each start of a collective, and `waiting` around each wait of the stream
    `compute` for one (None, on CPU: its collectives return when they are done, and are waits themselves).

    It starts all of them by the name `dist` in one module, which gets a stand-in. On a GPU it waits by wait_event on
    the current stream, for events that two of its functions return: these are told what they stand for. All holds for
    the whole process while entered, whoever built the model (Accelerate, say).
    """
    started: list[ProcessGroup] = []

    class WatchedDist:
        def __getattr__(self, name: str) -> Any:
            function = getattr(dist, name)
            operation = _FSDP_STARTS.get(name)
            if operation is None:
                return function

            def start(*args: Any, group: ProcessGroup, **kwargs: Any) -> Any:
                if compute is None:
                    blocking = waiting(operation, group, False)
                else:
                    started.append(group)
                    blocking = nullcontext()
                with issuing(operation), blocking:
                    return function(*args, group=group, **kwargs)

            return start

    def foreach_all_gather(*args: Any, **kwargs: Any) -> Any:
        started.clear()
        result = plain_all_gather(*args, **kwargs)
        if started and isinstance(result.all_gather_event, torch.cuda.Event):
            setattr(result.all_gather_event, _STANDS_FOR, ("all_gather", started[0]))
        return result

    def foreach_reduce(*args: Any, **kwargs: Any) -> Any:
        started.clear()
        result = plain_reduce(*args, **kwargs)
        # A reduce-scatter, and with replicas an all-reduce behind it: the second result is the first one's event.
        for place, item in enumerate(result):
            if started and isinstance(item, torch.cuda.Event):
                setattr(item, _STANDS_FOR, ("reduce", started[0 if place == 1 else -1]))
        return result

    def wait_event(stream: torch.cuda.Stream, event: Any) -> None:
        stands_for: tuple[str, ProcessGroup] | None = getattr(event, _STANDS_FOR, None)
        with waiting(*stands_for, event.query()) if stands_for and stream == compute else nullcontext():
            plain_wait_event(stream, event)

    param_group: Any = _fsdp_param_group
    stream_class: Any = torch.cuda.Stream
    plain_all_gather, plain_reduce = param_group.foreach_all_gather, param_group.foreach_reduce
    plain_wait_event = stream_class.wait_event
    _fsdp_collectives.dist = WatchedDist()  # type: ignore[assignment]
    if compute is not None:
        param_group.foreach_all_gather, param_group.foreach_reduce = foreach_all_gather, foreach_reduce
        stream_class.wait_event = wait_event
    try:
        yield
    finally:
        _fsdp_collectives.dist = dist
        param_group.foreach_all_gather, param_group.foreach_reduce = plain_all_gather, plain_reduce
        stream_class.wait_event = plain_wait_event


_STANDS_FOR = "_switchyard_stands_for"
"""Attribute of an event of FSDP2's: an operation and its group."""
_FSDP_STARTS = {
    "all_gather_single": "all_gather",  # 2.13's names, and 2.11's
    "all_gather_into_tensor": "all_gather",
    "reduce_scatter_single": "reduce_scatter",
    "reduce_scatter_tensor": "reduce_scatter",
    "all_reduce": "all_reduce",
}


def backward_from(edges: Sequence[GradientEdge], grads: Sequence[Tensor]) -> None:
    """Backward from where tensors were made, which need not be there any more: torch.autograd.backward, which on 2.11
    looks into each node for the shapes of gradients and refuses those of Python functions, which ours are."""
    _engine_run_backward(tuple(edges), tuple(grads), False, False, (), allow_unreachable=True, accumulate_grad=True)


def split_backward_input(
    edges: list[GradientEdge], grads: list[Tensor], inputs: Sequence[Tensor], weights: Sequence[nn.Parameter]
) -> list[dict[str, Any]]:
    """Go back from `edges` to the leaves `inputs` and not yet to the weights; what `split_backward_weight` needs.

    The halves of torch.distributed.pipelining's split backward (zero bubble, Qi et al. 2023), which it shows only in
    its own runtime, a chain of neighbours that cannot run DualPipe. Its analysis of the graph is used; it would itself
    go through torch.autograd.grad (see `backward_from`), and keep the tensors that the edges are of.
    """
    reverse = construct_reverse_graph([edge.node for edge in edges])
    of_inputs = [get_gradient_edge(x) for x in inputs]
    groups = get_param_groups(
        [edge.node for edge in of_inputs], [get_gradient_edge(weight).node for weight in weights], reverse
    )
    handles = []
    for group in groups:
        nodes = group["intermediates"] = list(group["intermediates"])
        group["grads"] = [()] * len(nodes)
        # On 2.11 the node of a Python function is held weakly.
        group["roots"] = edges
        for place, node in enumerate(nodes):
            handles.append(node.register_prehook(partial(group["grads"].__setitem__, place)))
    _engine_run_backward(
        tuple(edges), tuple(grads), True, False, tuple(of_inputs), allow_unreachable=True, accumulate_grad=False
    )
    for handle in handles:
        handle.remove()
    return groups


def split_backward_weight(groups: list[dict[str, Any]]) -> None:
    """Add the weights' gradients to their `.grad`, from what `split_backward_input` kept: for each group of weights,
    the gradients that reached the nodes before them.

    Not torch's own second half: that goes through torch.autograd.grad, see `backward_from`.
    """
    for group in groups:
        reached = list(zip(group["intermediates"], group["grads"], strict=True))
        edges = [(GradientEdge(node, i), g) for node, grads in reached for i, g in enumerate(grads) if g is not None]
        handles = []
        if len(reached) > 1:
            # A node behind another one of the group gets what comes through that one too: it has been counted.
            handles = [node.register_prehook(lambda _, saved=grads: saved) for node, grads in reached]
        weights = group["params"]
        gradients = _engine_run_backward(
            tuple(edge for edge, _ in edges),
            tuple(gradient for _, gradient in edges),
            False,
            False,
            tuple(GradientEdge(node, 0) for node in weights),
            allow_unreachable=True,
            accumulate_grad=False,
        )
        for handle in handles:
            handle.remove()
        for node, gradient in zip(weights, gradients, strict=True):
            weight = node.variable
            weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
        group.clear()  # or nodes and their hooks would keep each other alive


def reduced_by_fsdp(stage: nn.Module) -> list[list[nn.Parameter]]:
    """The sharded parameters whose gradients FSDP2 reduces at a time. Known before the first forward, which
    `_fsdp_groups` are not."""
    states = {id(state): state for state in map(fully_shard.state, _fsdp_modules(stage))}  # type: ignore[attr-defined]
    groups = [state._fsdp_param_group for state in states.values()]
    return [[parameter.sharded_param for parameter in group.fsdp_params] for group in groups if group is not None]


def _fsdp_modules(stage: nn.Module) -> list[FSDPModule]:
    return [module for module in stage.modules() if isinstance(module, FSDPModule)]


def begin_as_root(stage: nn.Module) -> None:
    """FSDP2: whoever is called first takes itself for the root. Where a stage's parts are called one by one, that must
    be said for the stage; again does nothing."""
    fully_shard.state(stage)._lazy_init()  # type: ignore[attr-defined]


def accumulate_in_reduce_dtype(stage: nn.Module) -> None:
    """FSDP2: add the unsharded gradients that were made by hand to those of earlier micro-batches, in the reduce dtype.

    Its own hook does this, and none fires when weight gradients are made apart.
    """
    for group in _fsdp_groups(stage):
        for parameter in group.fsdp_params:
            if hasattr(parameter, "_unsharded_param"):
                parameter.accumulate_unsharded_grad_if_needed()
                parameter.to_accumulated_grad_if_needed()


def reduce_accumulated(stage: nn.Module) -> None:
    """FSDP2: scatter the gradients that added up without synchronisation, as torch's pipeline runtime does it: turn
    synchronisation on, and run the hooks that would have run after the last backward."""
    assert isinstance(stage, FSDPModule)
    stage.set_is_last_backward(True)
    stage.set_reshard_after_backward(True)
    stage.set_requires_gradient_sync(True)
    for group in _fsdp_groups(stage):
        group.post_backward()
    fully_shard.state(stage)._root_post_backward_final_callback()  # type: ignore[attr-defined]


def _fsdp_groups(stage: nn.Module) -> list[Any]:
    """FSDP2's parameter groups of `stage`, in the order of backward."""
    states = fully_shard.state(stage)._state_ctx.all_states  # type: ignore[attr-defined]
    groups = [state._fsdp_param_group for state in reversed(states)]
    return [group for group in groups if group is not None]


TorchAction = tuple[str, int, int]
"""F, B, I or W; stage; micro-batch."""


def torch_pipeline_order(
    name: str, n_ranks: int, n_stages: int, n_micro_batches: int
) -> list[list[tuple[TorchAction, ...]]]:
    """What each rank of torch's schedule `name` computes, in order; two actions in one slot are a forward beside a
    backward. torch shows the table only as an attribute of a schedule, which asks for stages: these need no model."""
    per_rank = n_stages // n_ranks
    stages = [
        SimpleNamespace(num_stages=n_stages, group_size=n_ranks, group_rank=0, submod=None) for _ in range(per_rank)
    ]
    # The table alone: what torch would make of it next (messages, gathers) takes a minute for 64 ranks.
    without = {"_prepare_schedule_with_comms": lambda self, actions: None}
    schedule: Any = type(name, (get_schedule_class(name),), without)(stages, n_micro_batches)
    order: list[list[tuple[TorchAction, ...]]] = []
    for rank in range(n_ranks):
        slots = [action for action in schedule.pipeline_order[rank] if action is not None]
        order.append([tuple(map(_plain, slot.sub_actions or (slot,))) for slot in slots])
    return order


def _plain(action: Any) -> TorchAction:
    return action.computation_type.value, action.stage_index, action.microbatch_index


class SharedMemory:
    """Bytes of each rank of a group, which all of its ranks read and write. Keep it: what is given back and made anew
    may meet a peer's older memory."""

    def __init__(self, n_bytes: int, device: torch.device, group: ProcessGroup) -> None:
        """All ranks at once; the host waits for the others."""
        # Where there is NVLink multicast, torch would set it up with the memory, for operators that are not used here.
        os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
        self.mine = symmetric.empty(n_bytes, dtype=torch.uint8, device=device)
        """As torch gave it, which its own operators ask for."""
        self._handle = symmetric.rendezvous(self.mine, group.group_name)

    def of(self, rank: int, shape: Sequence[int], dtype: torch.dtype, n_bytes_before: int = 0) -> Tensor:
        """A tensor in a rank's memory, behind so many bytes of it; no view of another one."""
        return self._handle.get_buffer(rank, list(shape), dtype, n_bytes_before // dtype.itemsize)

    def meet(self, patience: timedelta) -> None:
        """Of all ranks, what comes behind on this stream waits for what stands before: a kernel does, and traps when it
        has lost its patience."""
        self._handle.barrier(channel=0, timeout_ms=int(patience.total_seconds() * 1000))
