"""The private torch APIs that we use, all of them, each with its reason.

Checked on torch 2.11 and 2.13; a new torch is first tried against this file's tests.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard

# The two halves of a split backward; reached otherwise only through torch's own pipeline runtime.
from torch.distributed.pipelining._backward import stage_backward_input, stage_backward_weight
from torch.distributed.pipelining.schedules import get_schedule_class
from torch.distributed.tensor import DTensor

# Where a DTensor's local shard lies in the whole. Uneven shards make this more than rank x size, torch computes it for
# its own checkpoints, and there is no public name for it.
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def local_offset(tensor: DTensor) -> tuple[int, ...]:
    """Where the local part of `tensor` begins in the whole."""
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(offset)


def norms_in_float64(tensors: Sequence[Tensor]) -> list[Tensor]:
    """2-norm of each of `tensors`, of one device and dtype, summed in float64.

    One launch for hundreds of gradients. torch's own clipping is built on this; its public face,
    torch.nn.utils.get_total_norm, has no dtype to sum in.
    """
    return list(torch._foreach_norm(list(tensors), 2, torch.float64))


def scale_in_place(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply all of `tensors` by a scalar that is still on the device, in one launch, with no wait for its value."""
    torch._foreach_mul_(list(tensors), factor)


def split_backward_input(
    outputs: list[Tensor], output_grads: list[Tensor], inputs: list[Tensor], weights: Sequence[nn.Parameter]
) -> list[dict[str, Any]]:
    """Compute the inputs' gradients (into their `.grad`) and not yet the weights'; what `split_backward_weight` needs.

    The halves of torch.distributed.pipelining's split backward (zero bubble, Qi et al. 2023), which it shows only in
    its own runtime, a chain of neighbours that cannot run DualPipe.
    """
    _, groups = stage_backward_input(outputs, output_grads, inputs, iter(weights))
    return groups


def split_backward_weight(weights: Sequence[nn.Parameter], groups: list[dict[str, Any]]) -> None:
    """Add the weights' gradients, from what `split_backward_input` kept."""
    stage_backward_weight(iter(weights), groups)


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
    schedule: Any = get_schedule_class(name)(stages, n_micro_batches)
    order: list[list[tuple[TorchAction, ...]]] = []
    for rank in range(n_ranks):
        slots = [action for action in schedule.pipeline_order[rank] if action is not None]
        order.append([tuple(map(_plain, slot.sub_actions or (slot,))) for slot in slots])
    return order


def _plain(action: Any) -> TorchAction:
    return action.computation_type.value, action.stage_index, action.microbatch_index
