"""Hugging Face Accelerate as an engine: torch's DDP, or on GPUs FSDP2 (`fsdp_version=2`), by `Accelerator.prepare`.

Its own mixed precision is off: that is autocast, which would round the matrix products of the router and would leave
rounding of weights to each operator. The network casts as it does in every layout; FSDP2 gathers parameters in
`precision.compute` by its own policy, as natively. So numbers differ from the native ones only by the order of sums.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from models.config import ModelConfig
from models.initialise import Shard, initialise, whole
from models.transformer import Batch, LossTerms
from parallel.comm import Communicator
from parallel.config import OverlapConfig, PrecisionConfig, Reduction, StrategyConfig
from parallel.engine import OptimizerMaker
from parallel.late_moments import add_moments, without_moments
from parallel.logical_state import MOMENTS, model_state, named_state
from parallel.owned import own
from parallel.pipeline.loss_scale import LossScale
from parallel.update import Update, not_finite, step_unless
from parallel.whole_model_engine import WholeModelEngine, build_whole_model
from parallel.world import World

WRAPPED = ("Embedding", "Block")
"""What FSDP2 gathers at a time; the norm and the head stay with the root."""


class AccelerateEngine(WholeModelEngine):
    """See Engine. DDP reduces once per step, behind the last micro-batch's backward; FSDP2 with every micro-batch, or
    the gradients of all parameters would have to be kept whole."""

    def __init__(
        self,
        config: ModelConfig,
        strategy: StrategyConfig,
        overlap: OverlapConfig,
        precision: PrecisionConfig,
        world: World,
        comm: Communicator,
        seed: int,
        n_micro_batches: int,
        make_optimizer: OptimizerMaker,
    ) -> None:
        """Called by all ranks together, in the running process group."""
        # Parameters are filled before they are sharded: Accelerate finds them again by the address of their storage.
        model = build_whole_model(config, precision, precision.parameters.torch, strategy.recompute, comm)
        model.to_empty(device=world.device)
        initialise(model, seed)
        super().__init__(model, world, comm, n_micro_batches)
        self._sharded = strategy.reduction is Reduction.shard
        self._accelerator = _open_accelerator(self._sharded, overlap, precision, world)
        parameters = list(model.parameters())
        if self._sharded:
            optimizer = without_moments(make_optimizer, parameters, [p.dim() for p in parameters])
            self._wrapped, self._optimizer = self._accelerator.prepare(model, optimizer)
            add_moments(optimizer, make_optimizer, [p for group in optimizer.param_groups for p in group["params"]])
        else:
            with warnings.catch_warnings():
                # torch 2.13 has another word for it, which 2.11 and Accelerate do not know.
                warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
                self._wrapped, self._optimizer = self._accelerator.prepare(model, make_optimizer(parameters))
        self._parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
        self._check(world)

    @property
    def unseen(self) -> str | None:
        """See Engine: DDP waits inside C++; FSDP2 where it is watched, but not the sum of its gradient norm."""
        return (
            "the wait for the gradient norm's sum is in compute_opt"
            if self._sharded
            else "waits for DDP's all-reduces are in compute_bwd"
        )

    def set_rate(self, rate: float) -> None:
        """See Engine."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def update(self, max_norm: float, losses: Tensor) -> Update:
        """See Engine. The norm is summed in float32, as Accelerate does."""
        norm = self._accelerator.clip_grad_norm_(self._wrapped.parameters(), max_norm)
        whole_norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm).double()
        left_out = not_finite(whole_norm, losses)
        step_unless(left_out, self._optimizer.optimizer)
        return Update(whole_norm, left_out)

    def cross_entropy_sum(self, batches: Sequence[Batch]) -> Tensor:
        """See Engine. FSDP2's parameters are resharded afterwards: no backward comes that would do it."""
        total = super().cross_entropy_sum(batches)
        for module in self._model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        return total

    def weights(self) -> dict[str, Shard]:
        """See Engine; parameters' and buffers' own storage."""

        def shard_of(name: str, tensor: Tensor) -> Shard:
            return self._local(name) if name in self._parameters else whole(name, tensor)

        return model_state([self._model], shard_of)

    def gradients(self) -> dict[str, Shard]:
        """See Engine; the gradients' own storage."""

        def gradient(name: str, _: nn.Parameter) -> Shard:
            grad = self._parameters[name].grad
            assert grad is not None, "forward_backward looks for those that lack"
            return self._local(name, grad)

        return named_state([self._model], "gradient", gradient)

    def moments(self) -> dict[str, Shard]:
        """See Engine; the optimizer's own storage."""
        state: dict[str, Shard] = {}
        for moment in MOMENTS:

            def local(name: str, _: nn.Parameter, moment: str = moment) -> Shard:
                return self._local(name, self._optimizer.state[self._parameters[name]][moment])

            state |= named_state([self._model], f"optimizer.{moment}", local)
        return state

    def take_state(self, filled: Mapping[str, Shard], updates_done: int) -> None:
        """See Engine. The storage is ours already."""
        for moments in self._optimizer.state.values():
            moments["step"].fill_(updates_done)

    def _local(self, name: str, tensor: Tensor | None = None) -> Shard:
        """This rank's part of a parameter, or of a tensor that is cut as it is."""
        part = own(self._parameters[name], None, 1).shard
        if tensor is None:
            return part
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        return Shard(local, part.global_shape, part.offset)

    def _forward(self, batch: Batch) -> LossTerms:
        terms: LossTerms = self._wrapped(*batch)
        return terms

    def _begin_step(self) -> None:
        self._optimizer.zero_grad()

    def _forward_backward_one(self, batch: Batch, scale: LossScale, losses: Tensor, last: bool) -> None:
        quiet = not last and not self._sharded
        # Around forward too: it is there that DDP decides whether this backward reduces.
        with self._accelerator.no_sync(self._wrapped) if quiet else nullcontext():
            self._accelerator.backward(self._loss(batch, scale, losses))

    def _without_gradient(self) -> list[str]:
        return [name for name, parameter in self._parameters.items() if parameter.grad is None]

    def _check(self, world: World) -> None:
        """Accelerate takes what it can get: on CPU it ignores its plugins and runs DDP, and without launcher variables
        every rank would train alone.

        Raises:
            RuntimeError: if it is not what was asked for.
        """
        accelerator, cuda = self._accelerator, world.device.type == "cuda"
        asked = {
            "distributed_type": "FSDP" if self._sharded else "MULTI_GPU" if cuda else "MULTI_CPU",
            "num_processes": world.size,
            "device": (world.device.type, world.device.index or 0),
            "mixed_precision": "no",
            "gradient_accumulation_steps": 1,  # else it would divide the loss by it
            "is_fsdp2": self._sharded,
            "wrapper": FSDPModule if self._sharded else DistributedDataParallel,
            "broadcast_buffers": False,
            "sharded parameters": len(self._parameters) if self._sharded else 0,
        }
        got = {name: getattr(accelerator, name) for name in asked if hasattr(accelerator, name)}
        got["distributed_type"] = accelerator.distributed_type.value
        got["device"] = (accelerator.device.type, accelerator.device.index or 0)
        wrapper: Any = asked["wrapper"]
        got["wrapper"] = wrapper if isinstance(self._wrapped, wrapper) else type(self._wrapped)
        got["broadcast_buffers"] = getattr(self._wrapped, "broadcast_buffers", False)
        got["sharded parameters"] = sum(isinstance(p, DTensor) for p in self._parameters.values())
        differing = [f"{name} is {got[name]} and not {asked[name]}" for name in asked if got[name] != asked[name]]
        if differing:
            raise RuntimeError(f"Accelerate does not do what strategy.engine=accelerate asks: {'; '.join(differing)}")


def _open_accelerator(sharded: bool, overlap: OverlapConfig, precision: PrecisionConfig, world: World) -> Any:
    """The Accelerator over the running process group. Imported here: it takes a second."""
    if world.device.type == "cpu":
        # Unset, Accelerate sets the number of threads itself, and says so on every rank.
        os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, FullyShardedDataParallelPlugin

    # Nothing is to be moved: all is made where it belongs.
    common = {"cpu": world.device.type == "cpu", "mixed_precision": "no", "device_placement": False}
    if not sharded:
        ddp = DistributedDataParallelKwargs(
            broadcast_buffers=False,  # the routers' counts are each rank's own
            bucket_cap_mb=overlap.bucket_mib,
            gradient_as_bucket_view=True,
        )
        return Accelerator(**common, kwargs_handlers=[ddp])
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=overlap.reshard_after_forward,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=list(WRAPPED),
        mixed_precision_policy=MixedPrecisionPolicy(
            param_dtype=precision.compute.torch, reduce_dtype=precision.reduce.torch, cast_forward_inputs=False
        ),
        cpu_offload=False,
        cpu_ram_efficient_loading=False,
        activation_checkpointing=False,
    )
    return Accelerator(**common, fsdp_plugin=plugin)
