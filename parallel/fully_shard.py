"""Data parallel by shards: torch's FSDP2 (ZeRO-3; Rajbhandari et al. 2020, Zhao et al. 2023) over a block's parts.

A block's communication-free parts are wrapped one by one, not the block, so that gathering and resharding follow the
part that runs, in whatever order a schedule calls them. HSDP is the same call with a mesh of two dimensions.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from models.block import Block
from models.transformer import Transformer
from parallel.comm import Communicator
from parallel.comm_kind import CommKind
from parallel.config import OverlapConfig, PrecisionConfig
from parallel.early_update import EarlyUpdates
from parallel.mesh import Axis
from parallel.owned import Owned
from parallel.pipeline.action import StageKey
from parallel.torch_internals import (
    accumulate_in_reduce_dtype,
    begin_as_root,
    reduce_accumulated,
    reduced_by_fsdp,
)


def shard_stage(
    stage: Transformer,
    dense_mesh: DeviceMesh,
    expert_mesh: DeviceMesh,
    precision: PrecisionConfig,
    overlap: OverlapConfig,
) -> None:
    """Shard `stage`'s parameters (dimension 0) in place: 1-D meshes to shard, 2-D ones to replicate × shard.

    Routed experts have a mesh of their own, of the ranks that hold the same ones.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=precision.compute.torch,
        reduce_dtype=precision.reduce.torch,
        # What travels between the parts keeps its dtype: routing weights are float32 until combine.
        cast_forward_inputs=False,
    )
    parts: list[list[nn.Module]] = [[stage.embedding]] if stage.embedding is not None else []
    for block in stage.layers.values():
        assert isinstance(block, Block)
        if block.experts.routed is not None and expert_mesh is not dense_mesh:
            # Inside the experts' part and before it: what is left of that part is on the other mesh.
            fully_shard(
                block.experts.routed,
                mesh=expert_mesh,
                mp_policy=policy,
                reshard_after_forward=overlap.reshard_after_forward,
            )
        parts += [[block.attention], [block.experts]]
    if stage.norm is not None and stage.head is not None:
        parts.append([stage.norm, stage.head])

    for index, part in enumerate(parts):
        # The last part's backward follows its forward at once: gathering it again would be for nothing.
        reshard = overlap.reshard_after_forward and index < len(parts) - 1
        fully_shard(
            part if len(part) > 1 else part[0], mesh=dense_mesh, mp_policy=policy, reshard_after_forward=reshard
        )
    fully_shard(stage, mesh=dense_mesh, mp_policy=policy, reshard_after_forward=False)

    for module in _sharded(stage):
        # The loss is already divided by the global token count: sum, do not average. Both calls: without the second one
        # gloo is asked for PREMUL_SUM, which it lacks.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    # Where parts are called one by one, each is FSDP2's root in turn, and its gather would wait for what was computed
    # before, had the part before it not asked for it.
    if overlap.param_prefetch > 1 or overlap.forward_backward:
        _prefetch(parts, overlap.param_prefetch)
    # By itself FSDP2 gathers, behind each part's backward, what went forward before it. Before the first part that was
    # another micro-batch's last part, or an evaluation's: for nothing. Told to gather the first part, it gathers none.
    first = parts[0][0]
    assert isinstance(first, FSDPModule)
    first.set_modules_to_backward_prefetch([first])


@dataclass
class _ReducedPart:
    """Parameters whose gradients FSDP2 reduces in one collective."""

    stage: StageKey
    names: tuple[str, ...]
    missing: set[str] = field(default_factory=set)
    """Of this micro-batch still to come."""
    last: bool = False
    """Whether this micro-batch is the stage's last one of the step."""


class ShardedGradients:
    """FSDP2 reduces inside backward: every micro-batch's gradient is scattered to its shards and added there. What is
    left to arrange is what is wanted once per step: HSDP's sum over replicas, and the sums over ranks that no mesh of
    FSDP2 spans, tensor-parallel ranks (of weights that these do not split) and DualPipe's pairs.

    With `overlap` off all micro-batches add up in whole, unsharded gradients of the reduce dtype, and are scattered
    once, after the last one. So they are under a schedule that splits backward: it makes weight gradients by hand,
    where no hook of FSDP2 fires (and parameters must stay gathered, or they silently get none: see
    overlap.reshard_after_forward). And so they are where backward goes in segments, with each of which it would end for
    FSDP2.
    """

    def __init__(
        self,
        stages: Mapping[StageKey, Transformer],
        owned: Mapping[str, Owned],
        beyond: Mapping[str, Axis],
        comm: Communicator,
        overlap: bool,
        split_backward: bool,
    ) -> None:
        """`beyond`: by parameter, the ranks outside FSDP2's mesh to sum over."""
        self._stages, self._owned, self._comm = stages, owned, comm
        self._split_backward, self._once = split_backward, split_backward or not overlap
        self._parameters = {name: p for stage in stages.values() for name, p in stage.named_parameters()}
        self._beyond: dict[ProcessGroup, list[str]] = {}
        for name in sorted(owned):  # the same order on every rank, whichever stage it has first
            if beyond[name].size > 1:
                self._beyond.setdefault(beyond[name].group, []).append(name)
        self._early: EarlyUpdates | None = None
        self._parts = [] if self._once else self._parts_of_one_sum()
        self._updated_last = set(owned) - {name for part in self._parts for name in part.names}

    def _parts_of_one_sum(self) -> "list[_ReducedPart]":
        """What FSDP2 reduces at a time, but for what is summed over further ranks after it."""
        alone = set(self._owned).difference(*self._beyond.values())
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        parts = [
            _ReducedPart(key, tuple(name for p in parameters if (name := names[id(p)]) in alone))
            for key, stage in self._stages.items()
            for parameters in reduced_by_fsdp(stage)
        ]
        return [part for part in parts if part.names]

    def reduced_together(self) -> list[list[nn.Parameter]]:
        """FSDP2's parts, and last what it does not reduce, or not alone."""
        groups = [[self._owned[name].master for name in part.names] for part in self._parts]
        last = [self._owned[name].master for name in sorted(self._updated_last)]
        return [*groups, last] if last else groups

    def update_early(self, updates: EarlyUpdates) -> None:
        """See GradientSync. FSDP2 calls a parameter's hook on the stream where its reduced gradient has just come to
        be: with every micro-batch, of which the last one counts."""
        self._early = updates
        for index, part in enumerate(self._parts):
            for name in part.names:
                hook = partial(self._reduced, updates, index, name)
                self._parameters[name].register_post_accumulate_grad_hook(hook)

    def _reduced(self, updates: EarlyUpdates, index: int, name: str, parameter: Tensor) -> None:
        part = self._parts[index]
        part.missing.discard(name)
        if not part.missing and part.last:
            self._hand_over(part.names)
            updates.update_aside(index)

    def _hand_over(self, names: Iterable[str]) -> None:
        """Show the masters their shards' gradients."""
        for name in names:
            gradient = self._parameters[name].grad
            if isinstance(gradient, DTensor):
                self._owned[name].master.grad = gradient.to_local()

    def begin_step(self) -> None:
        """Free the shards' gradients."""
        for name, parameter in self._parameters.items():
            parameter.grad = None
            self._owned[name].master.grad = None
        if self._once:
            for stage in self._stages.values():
                assert isinstance(stage, FSDPModule)
                begin_as_root(stage)
                stage.set_is_last_backward(False)
                stage.set_reshard_after_backward(not self._split_backward)
                stage.set_requires_gradient_sync(False)

    def begin_backward(self, stage: StageKey, last: bool) -> None:
        """Let the last micro-batch's backward sum over replicas."""
        module = self._stages[stage]
        assert isinstance(module, FSDPModule)
        if not self._once:
            module.set_requires_all_reduce(last)
        for part in self._parts:
            if part.stage == stage:
                part.missing, part.last = set(part.names), last

    def arrived(self, stage: StageKey, name: str) -> None:
        """FSDP2 looks at whole groups, see `made_by_hand`."""

    def made_by_hand(self, stage: StageKey) -> None:
        """Move what was added by hand to where it adds up in the reduce dtype: no hook of FSDP2 fired."""
        accumulate_in_reduce_dtype(self._stages[stage])

    def finish_step(self) -> None:
        """Reduce what has not been reduced, and hand the shards' gradients over."""
        if self._once:
            # By stage number: two ranks that hold the same stages in two chains agree on the order.
            for key in sorted(self._stages, key=lambda key: (key.stage, key.chain)):
                reduce_accumulated(self._stages[key])
        self._hand_over(self._parameters)
        for group, names in self._beyond.items():
            gradients = [g for name in names if (g := self._owned[name].master.grad) is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])  # one collective for many small tensors
            self._comm.all_reduce(flat, group, CommKind.dp)
            for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))
        if self._early:
            if self._updated_last:
                self._early.update(len(self._parts))
            self._early.join()

    def copies(self) -> dict[nn.Parameter, Tensor]:
        """None."""
        return {}

    def publish(self, copies_are_made: bool) -> None:
        """The masters are the shards."""


def _sharded(stage: nn.Module) -> list[FSDPModule]:
    return [module for module in stage.modules() if isinstance(module, FSDPModule)]


def _prefetch(parts: Sequence[Sequence[nn.Module]], depth: int) -> None:
    """Gather the next `depth` parts' parameters while one computes, those of the experts inside them too.

    compute   F(1)          F(2)          F(3)
    gather    2, 3          4             5          depth 2; backward the same, the other way
    """
    groups = [
        [module for root in part for module in root.modules() if isinstance(module, FSDPModule)] for part in parts
    ]
    for index, group in enumerate(groups):
        following: list[FSDPModule] = [module for other in groups[index + 1 : index + 1 + depth] for module in other]
        before: list[FSDPModule] = [module for other in groups[max(0, index - depth) : index][::-1] for module in other]
        group[0].set_modules_to_forward_prefetch(following)
        group[0].set_modules_to_backward_prefetch(before)
