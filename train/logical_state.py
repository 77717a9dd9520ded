"""A layout's tensors under their logical names: what a checkpoint holds, whatever the layout was.

    model.layers.1.attention.router.expert_bias_E         a parameter or buffer, whole or sharded
    model.layers.1.experts.routed.5.gate_FD               one logical expert, wherever its slot is
    optimizer.exp_avg.layers.1.experts.routed.5.gate_FD   the same for AdamW's moments

Stacked experts are taken apart into views of their slots, named by logical expert. So ranks may hold any experts in any
order, and still save and load the same names; and a load into the views fills the stack.
"""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.optim import Optimizer

from models.experts import RoutedExperts
from parallel.parallelize import ParallelModel
from parallel.torch_internals import shard_of

MOMENTS = ("exp_avg", "exp_avg_sq")


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers of `model`, as `model.*`: DTensors where sharded, views where stacked."""
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        for logical_name, part in _take_apart(model, name, tensor.detach()):
            state[f"model.{logical_name}"] = part
    return state


def optimizer_state(parallel: ParallelModel, optimizer: Optimizer) -> dict[str, Tensor]:
    """AdamW's moments, as `optimizer.exp_avg.*` and `optimizer.exp_avg_sq.*`."""
    state = {}
    for name, parameter in parallel.parameters.items():
        for moment in MOMENTS:
            for logical_name, part in _take_apart(parallel.model, name, optimizer.state[parameter][moment]):
                state[f"optimizer.{moment}.{logical_name}"] = part
    return state


def _take_apart(model: nn.Module, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    module_name, _, leaf = name.rpartition(".")
    module = model.get_submodule(module_name)
    if not isinstance(module, RoutedExperts):
        yield name, tensor
        return
    shard = shard_of(tensor)
    if tuple(shard.local.shape[1:]) != shard.global_shape[1:]:
        raise ValueError(f"{name} is split inside its experts; only whole experts have a logical name")
    for i in range(shard.local.shape[0]):
        expert = module.expert_of_slot[shard.offset[0] + i]
        yield f"{module_name}.{expert}.{leaf.replace('_E', '_')}", shard.local[i]
