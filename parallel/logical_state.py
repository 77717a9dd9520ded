"""A layout's tensors under their logical names: what a checkpoint holds, whatever the layout was.

    model.layers.1.attention.router.expert_bias_E         a parameter or buffer, or the part of it that is here
    model.layers.1.experts.routed.5.gate_FD               one logical expert, wherever its slot is
    optimizer.exp_avg.layers.1.experts.routed.5.gate_FD   the same for AdamW's moments

Each is a Shard: storage, the whole's shape, and where in it the storage begins. Stacked experts are taken apart into
views of their slots, named by logical expert. So ranks may hold any experts in any order, cut in any way, and still
save and load the same names; and a load into the views fills the stack.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from models.experts import RoutedExperts
from models.initialise import Shard, whole

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's, by its own names."""


def model_state(stages: Iterable[nn.Module], shard_of: Callable[[str, Tensor], Shard] = whole) -> dict[str, Shard]:
    """Parameters and persistent buffers of `stages`, as `model.*`, where `shard_of` says that they are kept."""
    state = {}
    for stage in stages:
        for name, tensor in stage.state_dict(keep_vars=True).items():
            for logical_name, part in _take_apart(stage, name, shard_of(name, tensor.detach())):
                state[f"model.{logical_name}"] = part
    return state


def named_state(
    stages: Iterable[nn.Module], prefix: str, shard_of: Callable[[str, nn.Parameter], Shard]
) -> dict[str, Shard]:
    """One tensor for each parameter of `stages` (a gradient, a moment), as `prefix.*`, where `shard_of` says."""
    state = {}
    for stage in stages:
        for name, parameter in stage.named_parameters():
            for logical_name, part in _take_apart(stage, name, shard_of(name, parameter)):
                state[f"{prefix}.{logical_name}"] = part
    return state


def _take_apart(stage: nn.Module, name: str, shard: Shard) -> Iterator[tuple[str, Shard]]:
    module_name, _, leaf = name.rpartition(".")
    module = stage.get_submodule(module_name)
    if not isinstance(module, RoutedExperts):
        yield name, shard
        return
    for i in range(shard.local.shape[0]):
        expert = module.expert_of_slot[shard.offset[0] + i]
        part = Shard(shard.local[i], shard.global_shape[1:], shard.offset[1:])
        yield f"{module_name}.{expert}.{leaf.replace('_E', '_')}", part


def put_together(stage: nn.Module, name: str, prefix: str, state: Mapping[str, Shard]) -> Tensor:
    """The whole tensor of a parameter of `stage` again, of whole parts that `state` has as `prefix.*`."""
    module_name, _, leaf = name.rpartition(".")
    module = stage.get_submodule(module_name)
    if not isinstance(module, RoutedExperts):
        return state[f"{prefix}.{name}"].local
    leaf = leaf.replace("_E", "_")
    return torch.stack([state[f"{prefix}.{module_name}.{expert}.{leaf}"].local for expert in module.expert_of_slot])
