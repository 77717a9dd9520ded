"""What the engines of other libraries cannot do, and which settings they read: every rule, before any process group."""

from dataclasses import fields

import torch

from models.config import ConfigError
from parallel.config import Dtype, EngineName, OverlapConfig, PrecisionConfig, Reduction, StrategyConfig
from parallel.expert_parallel.build import RowRoom
from parallel.mesh import Degrees

REDUCTIONS = {
    EngineName.native: (Reduction.none, Reduction.all_reduce, Reduction.shard, Reduction.shard_optimizer),
    EngineName.accelerate: (Reduction.all_reduce, Reduction.shard),
    EngineName.deepspeed: (Reduction.shard_optimizer, Reduction.shard_gradients, Reduction.shard),
}
READ = {
    (EngineName.accelerate, Reduction.all_reduce): ("bucket_mib",),
    (EngineName.accelerate, Reduction.shard): ("reshard_after_forward",),
    (EngineName.deepspeed, Reduction.shard_optimizer): ("grad_reduce", "bucket_mib"),
    (EngineName.deepspeed, Reduction.shard_gradients): ("grad_reduce", "bucket_mib"),
    (EngineName.deepspeed, Reduction.shard): ("grad_reduce", "bucket_mib"),
}
"""Fields of `overlap` that mean something to an engine."""
OURS = ("name", "pipeline_p2p", "data", "checkpoint")
"""Fields of `overlap` that are none of an engine's."""


def check_engine(
    strategy: StrategyConfig, overlap: OverlapConfig, precision: PrecisionConfig, degrees: Degrees
) -> None:
    """Refuse what `strategy.engine` cannot do, and what it would not read.

    Raises:
        ConfigError: naming the key and what to set it to.
    """
    engine, reduction = strategy.engine, strategy.reduction
    if reduction not in REDUCTIONS[engine]:
        if engine is EngineName.native and reduction is Reduction.shard_gradients:
            hint = "natively that is strategy=fsdp overlap.reshard_after_forward=false"
        else:
            hint = f"set it to {' or '.join(known.value for known in REDUCTIONS[engine])}"
        raise ConfigError(
            f"strategy.reduction={reduction.value}: strategy.engine={engine.value} has no such thing; {hint}"
        )
    if engine is EngineName.native:
        return
    what = f"strategy.engine={engine.value}"
    if strategy.compile:
        raise ConfigError(f"strategy.compile=true: {what} has hooks inside what would be compiled; set it to false")
    if strategy.rows is RowRoom.static:
        raise ConfigError(f"strategy.rows=static: {what} does not read it; leave it out")
    for name in ("pp", "tp", "ep", "etp"):
        if (degree := getattr(degrees, name)) != 1:
            raise ConfigError(
                f"strategy.{name}={degree}: {what} is data parallelism alone; set it to 1, or strategy.engine=native"
            )
    if reduction is Reduction.shard and degrees.dp_replicate != 1:
        raise ConfigError(
            f"strategy.dp_replicate={degrees.dp_replicate}: {what} shards over all ranks; set it to 1, or use "
            "strategy=hsdp"
        )
    if engine is EngineName.accelerate and degrees.world == 1:
        raise ConfigError(f"{what} takes 2 ranks or more, and 1 was started: it leaves one process as it is")
    one_piece = reduction is Reduction.shard_optimizer and precision.compute is Dtype.bfloat16
    read = OURS if one_piece else (*READ[engine, reduction], *OURS)
    for field in fields(OverlapConfig):
        value = getattr(overlap, field.name)
        if field.name not in read and value != field.default:
            raise ConfigError(
                f"overlap.{field.name}={_typed(value)}: strategy={strategy.name} does not read it"
                f"{' with precision.compute=bfloat16' * one_piece}; set it to {_typed(field.default)}"
            )
    if engine is EngineName.deepspeed:
        _check_deepspeed(precision)


def check_engine_device(strategy: StrategyConfig, device: torch.device) -> None:
    """Refuse an engine that does something else on `device`.

    Raises:
        ConfigError: saying where it runs.
    """
    if strategy.engine is EngineName.accelerate and strategy.reduction is Reduction.shard and device.type == "cpu":
        raise ConfigError(
            f"strategy={strategy.name} runs on GPUs only: on CPU Accelerate ignores its FSDP2 settings and runs DDP; "
            "use strategy=fsdp, or strategy=accelerate_ddp"
        )


def _check_deepspeed(precision: PrecisionConfig) -> None:
    for name in ("parameters", "compute", "reduce"):
        if getattr(precision, name) is Dtype.float64:
            raise ConfigError(f"precision.{name}=float64: DeepSpeed has no float64; use precision=fp32 or bf16")
    if precision.compute is Dtype.float32 and precision.reduce is not Dtype.float32:
        raise ConfigError(
            f"precision.reduce={precision.reduce.value}: DeepSpeed reduces float32 gradients as they are; set it to "
            "float32, or precision.compute=bfloat16"
        )


def _typed(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
