"""DeepSpeed as an engine: ZeRO-1, ZeRO-2 and ZeRO-3 (Rajbhandari et al. 2020), in float32 or with bfloat16 compute.

What differs from native layouts, and is DeepSpeed's own:
- With bfloat16 compute its modules hold bfloat16 weights beside the fp32 masters, so every gradient is bfloat16 where a
  micro-batch's backward ends. Natively weights are rounded where they meet activations, and the same gradients arrive
  in float32 (FSDP2, ZeRO-1: in `precision.reduce`). `precision.reduce` is what it sends and adds micro-batches in.
- ZeRO-1 reduces once per step; ZeRO-2 and 3 with every micro-batch, or their gradients could not stay shared out.
- ZeRO-1 with bfloat16 compute is another of its optimizers (BF16_Optimizer), which reduces after backward in one piece:
  there is nothing behind backward, and no bucket.
- ZeRO-3 puts a function of its own in the place of torch.nn.functional.linear, for the whole process: one that keeps no
  view of a gathered weight. Views that others keep (of routed experts, by grouped_mm) stay gathered until backward.
- The gradient norm is summed in float32, and a step whose norm is not finite is skipped.
"""

import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import partial
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn

from models.config import ModelConfig
from models.initialise import Shard, fill_parameter, reset_buffers, whole
from models.transformer import Batch, LossTerms
from parallel.comm import Communicator
from parallel.comm_kind import CommKind
from parallel.config import Dtype, OverlapConfig, PrecisionConfig, Reduction, StrategyConfig
from parallel.deepspeed_state import DeepSpeedState, whole_shape
from parallel.engine import OptimizerMaker
from parallel.late_moments import without_moments
from parallel.logical_state import MOMENTS, model_state, named_state, put_together
from parallel.pipeline.loss_scale import LossScale
from parallel.update import Update
from parallel.whole_model_engine import WholeModelEngine, build_whole_model
from parallel.world import World

STAGES = {Reduction.shard_optimizer: 1, Reduction.shard_gradients: 2, Reduction.shard: 3}


class DeepSpeedEngine(WholeModelEngine):
    """See Engine. State is gathered a parameter at a time, and each is kept, on the host, by one rank in turn."""

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
        deepspeed = _import_deepspeed(world)
        self._world = world
        model = build_whole_model(config, precision, precision.compute.torch, strategy.recompute, comm)
        super().__init__(model, world, comm, n_micro_batches)
        self._stage = STAGES[strategy.reduction]
        deepspeed_config = _deepspeed_config(self._stage, config, overlap, precision, n_micro_batches)

        def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
            return without_moments(make_optimizer, parameters, [len(whole_shape(p)) for p in parameters])

        deepspeed.init_distributed(dist_backend=deepspeed.get_accelerator().communication_backend_name())
        for module in model.modules():
            module.to_empty(device=world.device, recurse=False)
            if self._stage == 3 and next(module.parameters(recurse=False), None) is not None:
                # Cut at once, so that no rank ever holds more than one module whole.
                deepspeed.zero.Init(module=module, config_dict_or_path=deepspeed_config, dtype=precision.compute.torch)
        with redirect_stdout(StringIO()):  # BF16_Optimizer prints what memory is in use, step by step
            self._engine, *_ = deepspeed.initialize(
                model=model,
                model_parameters=list(model.parameters()),
                optimizer=optimizer,
                config=deepspeed_config,
            )
        self._parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
        self._state = DeepSpeedState(self._engine, list(self._parameters.values()), make_optimizer)
        self._arrived: set[str] = set()
        for name, parameter in self._parameters.items():
            parameter.register_hook(lambda _, name=name: self._arrived.add(name))
        self._check(precision)
        self._start(seed)

    @property
    def unseen(self) -> str:
        """See Engine."""
        return "waits for DeepSpeed's collectives are in compute_fwd, compute_bwd and compute_opt"

    def set_rate(self, rate: float) -> None:
        """See Engine."""
        for group in self._engine.basic_optimizer.param_groups:
            group["lr"] = rate

    def update(self, max_norm: float, losses: Tensor) -> Update:
        """See Engine. DeepSpeed itself leaves out steps by their norm alone."""
        self._engine.optimizer.clip_grad = max_norm if max_norm != float("inf") else 0.0
        finite = bool(losses.isfinite().all())
        with nullcontext() if finite else _standing_still(self._engine.basic_optimizer):
            self._engine.step()
        norm = torch.as_tensor(self._engine.get_global_grad_norm(), device=self._world.device).double()
        left_out = not finite or bool(self._engine.optimizer.overflow)
        return Update(norm, torch.tensor(left_out, device=self._world.device))

    def weights(self) -> dict[str, Shard]:
        """See Engine; copies of what this rank keeps, and buffers' own storage."""

        def shard_of(name: str, tensor: Tensor) -> Shard:
            if name not in self._parameters:
                return whole(name, tensor)
            return self._keep(name, self._state.master(self._parameters[name]))

        return model_state([self._model], shard_of)

    def gradients(self) -> dict[str, Shard]:
        """See Engine; copies of what this rank keeps."""
        return self._kept("gradient", self._state.gradient)

    def moments(self) -> dict[str, Shard]:
        """See Engine; copies of what this rank keeps."""
        state: dict[str, Shard] = {}
        for moment in MOMENTS:
            state |= self._kept(f"optimizer.{moment}", partial(self._state.moment, moment))
        return state

    def take_state(self, filled: Mapping[str, Shard], updates_done: int) -> None:
        """See Engine."""
        with_moments = any(name.startswith("optimizer.") for name in filled)  # of all, though others may keep them
        for name, parameter in self._parameters.items():
            self._state.set_master(parameter, self._from_keeper(name, "model", filled))
            if with_moments:
                for moment in MOMENTS:
                    value = self._from_keeper(name, f"optimizer.{moment}", filled)
                    self._state.set_moment(moment, parameter, value)
        self._state.publish()
        for count in self._state.step_counts:
            count.fill_(updates_done)

    def _start(self, seed: int) -> None:
        """The same start as everywhere, written into the masters: those that DeepSpeed made are of rounded weights."""
        reset_buffers(self._model)
        for name, parameter in self._parameters.items():
            value = torch.empty(whole_shape(parameter), dtype=torch.float32, device=self._world.device)
            fill_parameter(self._model.get_submodule(name.rpartition(".")[0]), name, whole(name, value), seed)
            self._state.set_master(parameter, value)
        self._state.publish()

    def _kept(self, prefix: str, gather: Callable[[nn.Parameter], Tensor]) -> dict[str, Shard]:
        return named_state([self._model], prefix, lambda name, _: self._keep(name, gather(self._parameters[name])))

    def _keep(self, name: str, tensor: Tensor) -> Shard:
        """The whole `tensor` on the rank that keeps it; on the others none of it."""
        local = tensor if self._keeper(name) == self._world.rank else tensor[:0]
        return Shard(local.to("cpu", copy=True), tuple(tensor.shape), (0,) * tensor.dim())

    def _keeper(self, name: str) -> int:
        return list(self._parameters).index(name) % self._world.size

    def _from_keeper(self, name: str, prefix: str, filled: Mapping[str, Shard]) -> Tensor:
        """What its keeper has of a parameter, on every rank."""
        shape, keeper = whole_shape(self._parameters[name]), self._keeper(name)
        if keeper == self._world.rank:
            value = put_together(self._model, name, prefix, filled).to(self._world.device)
        else:
            value = torch.empty(shape, dtype=torch.float32, device=self._world.device)
        return self._comm.broadcast(value, keeper, CommKind.control)

    def _forward(self, batch: Batch) -> LossTerms:
        terms: LossTerms = self._engine(*batch)
        return terms

    def _begin_step(self) -> None:
        self._arrived.clear()

    def _forward_backward_one(self, batch: Batch, scale: LossScale, losses: Tensor, last: bool) -> None:
        self._engine.backward(self._loss(batch, scale, losses), scale_wrt_gas=False)
        if not last:
            self._engine.step()  # counts the micro-batch; the optimizer moves only after the last

    def _without_gradient(self) -> list[str]:
        return [name for name in self._parameters if name not in self._arrived]

    def _check(self, precision: PrecisionConfig) -> None:
        """Raises:
        RuntimeError: if DeepSpeed's engine is not what was asked for.
        """
        engine, parameters = self._engine, self._parameters.values()
        stepped = sum(partition.numel() for partition in engine.basic_optimizer.state)
        total = sum(whole_shape(parameter).numel() for parameter in parameters)
        asked = {
            "ZeRO stage": self._stage,
            "world size": self._world.size,
            "micro-batches of a step": self._n_micro_batches,
            "bfloat16": precision.compute is Dtype.bfloat16,
            "partitioned parameters": len(self._parameters) if self._stage == 3 else 0,
            "optimizer state shared out": True,
        }
        got = {
            "ZeRO stage": int(engine.zero_optimization_stage()),
            "world size": engine.world_size,
            "micro-batches of a step": engine.gradient_accumulation_steps(),
            "bfloat16": engine.bfloat16_enabled(),
            "partitioned parameters": sum(self._is_partitioned(parameter) for parameter in parameters),
            "optimizer state shared out": stepped <= total / self._world.size + len(parameters),  # + padding
        }
        differing = [f"{name} is {got[name]} and not {asked[name]}" for name in asked if got[name] != asked[name]]
        if differing:
            raise RuntimeError(f"DeepSpeed does not do what strategy.engine=deepspeed asks: {'; '.join(differing)}")

    def _is_partitioned(self, parameter: nn.Parameter) -> bool:
        part: Tensor | None = getattr(parameter, "ds_tensor", None)
        return part is not None and part.numel() == math.ceil(whole_shape(parameter).numel() / self._world.size)


@contextmanager
def _standing_still(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside it `optimizer` moves nothing. What DeepSpeed does around a step it still does: it drops gradients."""
    step = optimizer.step
    optimizer.step = lambda *_: None  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        optimizer.step = step  # type: ignore[method-assign]


def _import_deepspeed(world: World) -> Any:
    """The library, told where it is and made quiet. Imported here: it takes two seconds."""
    if world.device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("LOCAL_RANK", "0")  # it insists on a launcher's, and one process may have none
    import deepspeed

    log = logging.getLogger("DeepSpeed")
    log.setLevel(logging.ERROR)
    for handler in log.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)  # our last words on stdout are read by programs
    # Renamed in torch 2.13, which warns at each call; DeepSpeed keeps the names that 2.11 has too.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.(all_gather_into|reduce_scatter)_tensor` is deprecated")
    # On CPU it would compile collectives of its own over shared memory, for a minute and a half at the first start and
    # by all ranks at once, if it found on probing that they can be had. Told that nothing can, it leaves them to gloo.
    deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


def _deepspeed_config(
    stage: int, model: ModelConfig, overlap: OverlapConfig, precision: PrecisionConfig, n_micro_batches: int
) -> dict[str, Any]:
    reduce = {Dtype.float32: "fp32", Dtype.bfloat16: "bf16"}[precision.reduce]
    zero = {
        "stage": stage,
        "overlap_comm": overlap.grad_reduce,
        "reduce_bucket_size": max(1, int(overlap.bucket_mib * 2**20 / precision.reduce.torch.itemsize)),
    }
    if stage == 3:
        # Vectors (norms) stay gathered, as is usual: their messages are not worth it. All matrices are put away.
        zero["stage3_param_persistence_threshold"] = 2 * model.dim
    return {
        "train_micro_batch_size_per_gpu": 1,  # it wants one, for its own log; batches are as large as they are
        "gradient_accumulation_steps": n_micro_batches,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": precision.compute is Dtype.bfloat16},
        "data_types": {"grad_accum_dtype": reduce},
        "communication_data_type": reduce,
        "gradient_clipping": 0.0,  # set with each step
        "steps_per_print": None,
    }
