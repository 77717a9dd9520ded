"""DeepSpeed's masters, gradients and moments, one whole parameter at a time: what its `safe_get_…` and `safe_set_…`
show, and the few places where they do not do.

    ZeRO-1, 2   one flat fp32 partition a rank and parameter group; a parameter may lie across two ranks' ends
    ZeRO-3      of every parameter a part on each rank, padded to equal length

All ranks call everything here together, parameter by parameter in one order: each call is a collective.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from parallel.engine import OptimizerMaker
from parallel.late_moments import add_moments


class DeepSpeedState:
    """The state behind the parameters of one `deepspeed.initialize`d engine."""

    def __init__(self, engine: Any, parameters: Sequence[Any], make_optimizer: OptimizerMaker) -> None:
        from deepspeed import utils, zero

        self._utils, self._zero, self._optimizer = utils, zero, engine.optimizer
        self._whole_partitions = engine.zero_optimization_stage() == 3
        self._rank, self._world_size = engine.global_rank, engine.world_size
        # DeepSpeed lets the first step make the moments. A resume fills them before it.
        base = engine.basic_optimizer
        if self._whole_partitions:
            stepped = self._optimizer.fp32_partitioned_groups_flat
        else:
            stepped = [partition for group in base.param_groups for partition in group["params"]]
        add_moments(base, make_optimizer, stepped)
        self.step_counts: list[Tensor] = [state["step"] for state in base.state.values()]
        if not self._whole_partitions:
            for parameter in parameters:
                mapping: Any = parameter._hp_mapping
                if mapping is not None:  # else nothing of it is here
                    partition = stepped[mapping.param_group_index]
                    mapping.set_optim_state_fragment(partition, base.state[partition])

    def master(self, parameter: nn.Parameter) -> Tensor:
        """The whole fp32 master."""
        return self._there(self._utils.safe_get_full_fp32_param(parameter))

    def gradient(self, parameter: nn.Parameter) -> Tensor:
        """The whole gradient, averaged over ranks; between the last backward and the step."""
        return self._there(self._utils.safe_get_full_grad(parameter))

    def moment(self, moment: str, parameter: nn.Parameter) -> Tensor:
        """The whole of one of AdamW's moments."""
        return self._there(self._utils.safe_get_full_optimizer_state(parameter, moment))

    def set_master(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Take `value`, which every rank has, as the master. What the network computes with follows at `publish`."""
        if not self._whole_partitions:
            self._utils.safe_set_full_fp32_param(parameter, value)
            return
        self._utils.safe_set_local_fp32_param(parameter, self._own_part(parameter, value))
        with self._zero.GatheredParameters([parameter], modifier_rank=0):
            if self._rank == 0:
                parameter.data.copy_(value)

    def set_moment(self, moment: str, parameter: nn.Parameter, value: Tensor) -> None:
        """Take `value`, which every rank has, as a moment."""
        if self._whole_partitions:
            part = self._own_part(parameter, value)
            self._utils.safe_set_local_optimizer_state(parameter, part, moment)
        else:
            self._utils.safe_set_full_optimizer_state(parameter, value, moment)

    def publish(self) -> None:
        """Have the network compute with the masters that were set."""
        if not self._whole_partitions:
            self._optimizer.update_lp_params()

    def _own_part(self, parameter: Any, value: Tensor) -> Tensor:
        """This rank's part. ZeRO-3's `safe_set_full_…` cannot do it: it reads past the end where the last is padded."""
        size: int = parameter.partition_numel()
        padded = value.new_zeros(size * self._world_size)
        padded[: value.numel()] = value.flatten()
        return padded[size * self._rank : size * (self._rank + 1)]

    @staticmethod
    def _there(tensor: Tensor | None) -> Tensor:
        assert tensor is not None, "DeepSpeed does not step this parameter"
        return tensor


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """Of a parameter that ZeRO-3 may have put away."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape
