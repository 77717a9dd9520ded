"""Data parallel by shards: torch's FSDP2 (ZeRO-3; Rajbhandari et al. 2020, Zhao et al. 2023) over a block's parts.

A block's communication-free parts are wrapped one by one, not the block, so that gathering and resharding follow the
part that runs, in whatever order a schedule calls them. HSDP is the same call with a mesh of two dimensions.
"""

from collections.abc import Sequence

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from models.block import Block
from models.transformer import Transformer
from parallel.config import OverlapConfig, PrecisionConfig


def shard_model(model: Transformer, mesh: DeviceMesh, precision: PrecisionConfig, overlap: OverlapConfig) -> None:
    """Shard `model`'s parameters (dimension 0) over `mesh`: 1-D to shard, 2-D to replicate × shard. In place."""
    policy = MixedPrecisionPolicy(
        param_dtype=precision.compute.torch,
        reduce_dtype=precision.reduce.torch,
        # What travels between the parts keeps its dtype: routing weights are float32 until combine.
        cast_forward_inputs=False,
    )
    parts: list[list[nn.Module]] = [[model.embedding]]
    for block in model.layers.values():
        assert isinstance(block, Block)
        parts += [[block.attention], [block.experts]]
    parts.append([model.norm, model.head])

    for index, part in enumerate(parts):
        # The last part's backward follows its forward at once: gathering it again would be for nothing.
        reshard = overlap.reshard_after_forward and index < len(parts) - 1
        fully_shard(part if len(part) > 1 else part[0], mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)

    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The loss is already divided by the global token count: sum, do not average. Both calls: without the
            # second one gloo is asked for PREMUL_SUM, which it lacks.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    if overlap.param_prefetch > 1:
        _prefetch([part[0] for part in parts], overlap.param_prefetch)


class ShardedGradients:
    """FSDP2 reduces inside backward: every micro-batch's gradient is scattered to its shards and added there. What is
    left to arrange is HSDP's sum over replicas, which is wanted once per step."""

    def __init__(self, model: FSDPModule, parameters: Sequence[nn.Parameter]) -> None:
        self._model, self._parameters = model, parameters

    def begin_step(self) -> None:
        """Free the shards' gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def begin_micro_batch(self, last: bool) -> None:
        """Let the last micro-batch's backward sum over replicas."""
        self._model.set_requires_all_reduce(last)

    def finish_step(self) -> None:
        """Nothing is under way: FSDP2 waits at the end of backward."""


def _prefetch(parts: Sequence[nn.Module], depth: int) -> None:
    """Gather the next `depth` parts' parameters while one computes.

    compute   F(1)          F(2)          F(3)
    gather    2, 3          4             5          depth 2; backward the same, the other way
    """
    sharded: list[FSDPModule] = [part for part in parts if isinstance(part, FSDPModule)]
    for index, part in enumerate(sharded):
        part.set_modules_to_forward_prefetch(sharded[index + 1 : index + 1 + depth])
        part.set_modules_to_backward_prefetch(sharded[max(0, index - depth) : index][::-1])
