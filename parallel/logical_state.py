"""A layout's tensors under their logical names: what a checkpoint holds, whatever the layout was.

    model.layers.1.attention.router.expert_bias_E         a parameter or buffer, or the part of it that is here
    model.layers.1.experts.routed.5.gate_FD               one logical expert, wherever its slot is
    optimizer.exp_avg.layers.1.experts.routed.5.gate_FD   the same for AdamW's moments

Each is a Shard: storage, the whole's shape, and where in it the storage begins. Stacked experts are taken apart into
views of their slots' matrices, named by logical expert. So ranks may hold any experts in any order, cut in any way, and
still save and load the same names; and a load into the views fills the stack.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from models.experts import STACKED, RoutedExperts
from models.initialise import Shard, expert_parts, whole

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
    for expert, matrix, part in expert_parts(module, leaf, shard):
        yield f"{module_name}.{expert}.{_of_one(matrix)}", part


def put_together(stage: nn.Module, name: str, prefix: str, state: Mapping[str, Shard]) -> Tensor:
    """The whole tensor of a parameter of `stage` again, of whole parts that `state` has as `prefix.*`."""
    module_name, _, leaf = name.rpartition(".")
    module = stage.get_submodule(module_name)
    if not isinstance(module, RoutedExperts):
        return state[f"{prefix}.{name}"].local
    stacks = [
        torch.stack([state[f"{prefix}.{module_name}.{e}.{_of_one(matrix)}"].local for e in module.expert_of_slot])
        for matrix in STACKED.get(leaf, (leaf,))
    ]
    return torch.stack(stacks, dim=1) if leaf in STACKED else stacks[0]


def _of_one(matrix: str) -> str:
    """The name of one expert's, of that of all experts': without the dimension of experts."""
    return matrix.replace("_E", "_")
