"""What a layout asks of the model and the batch: every rule that ties them, before any process group."""

from models.config import ConfigError, ModelConfig
from parallel.config import EngineName, OverlapConfig, Recompute, Reduction, StrategyConfig
from parallel.expert_parallel.build import DispatcherName, check_expert_parallel
from parallel.mesh import Degrees
from parallel.pipeline.schedules import PAIRED, build_schedule
from parallel.pipeline.split import split_layers
from parallel.tensor_parallel.apply import check_tensor_parallel


def check_layout(
    model: ModelConfig,
    strategy: StrategyConfig,
    overlap: OverlapConfig,
    degrees: Degrees,
    n_micro_batches: int,
    sequence_length: int,
) -> None:
    """Refuse what the layout cannot do.

    Raises:
        ConfigError: naming the number to change.
    """
    _check_idle(strategy, degrees)
    if degrees.ep * degrees.etp > 1 and model.n_dense_layers == model.n_layers:
        raise ConfigError(
            f"strategy.ep={degrees.ep} strategy.etp={degrees.etp}: model.n_dense_layers={model.n_dense_layers} leaves "
            "no layer with experts; set them to 1"
        )
    check_expert_parallel(model.moe, degrees.ep, degrees.etp)
    if degrees.tp > 1:
        check_tensor_parallel(model, degrees.tp, sequence_length)
        part = sequence_length // degrees.tp
        if part % overlap.async_tp:
            raise ConfigError(
                f"overlap.async_tp={overlap.async_tp}: a rank's part of a sequence, {part} tokens, is not so many "
                "equal chunks; set it to a divisor of that, or to 1"
            )
    _check_travel(model, strategy, overlap, degrees)
    if overlap.forward_backward:
        _check_side_by_side(strategy, overlap, degrees, n_micro_batches)
    schedule = build_schedule(
        strategy.schedule, degrees.pp, n_micro_batches, strategy.stages_per_rank, overlap.forward_backward
    )
    split_layers(model, schedule.n_stages, sequence_length)
    sharding = strategy.reduction is Reduction.shard and strategy.engine is EngineName.native
    _check_early_updates(strategy, overlap, schedule.splits_backward)
    if schedule.splits_backward and sharding and overlap.reshard_after_forward:
        raise ConfigError(
            f"strategy.schedule={strategy.schedule.value} computes weight gradients apart, for which FSDP2's "
            "parameters must stay gathered: set overlap.reshard_after_forward=false"
        )
    if schedule.splits_backward and strategy.recompute is not Recompute.none:
        raise ConfigError(
            f"strategy.recompute={strategy.recompute.value}: strategy.schedule={strategy.schedule.value} splits "
            "backward, and each half would compute again; set it to none, or choose another schedule"
        )


def _check_travel(model: ModelConfig, strategy: StrategyConfig, overlap: OverlapConfig, degrees: Degrees) -> None:
    """Refuse to hide rows that do not travel, or behind nothing."""
    chunks, native = overlap.dispatch_chunks, strategy.engine is EngineName.native
    if overlap.shared_experts and not (native and degrees.ep * degrees.etp > 1):
        raise ConfigError(
            "overlap.shared_experts=true: with strategy.ep=1 no row travels that it could hide; leave it out"
        )
    if overlap.shared_experts and model.moe.n_shared == 0:
        raise ConfigError(
            "overlap.shared_experts=true: model.moe.n_shared=0, there are none to hide behind; leave it out"
        )
    if chunks > 1 and not (native and degrees.ep > 1):
        raise ConfigError(f"overlap.dispatch_chunks={chunks}: with strategy.ep=1 no row travels; leave it out")
    if chunks > 1 and (degrees.etp > 1 or strategy.dispatcher is not DispatcherName.all_to_all):
        raise ConfigError(
            f"overlap.dispatch_chunks={chunks}: only strategy.dispatcher=all_to_all with strategy.etp=1 sends rows in "
            "parts; set it to 1"
        )
    if chunks > (slots := model.moe.n_routed // degrees.ep):
        raise ConfigError(f"overlap.dispatch_chunks={chunks}: a rank has {slots} experts; set it to at most {slots}")


def _check_side_by_side(
    strategy: StrategyConfig, overlap: OverlapConfig, degrees: Degrees, n_micro_batches: int
) -> None:
    """Refuse two micro-batches side by side where there are none, or nothing travels that they could hide."""
    said = "overlap.forward_backward=true"
    if degrees.ep == 1:
        raise ConfigError(f"{said}: with strategy.ep=1 no row travels that it could hide; set it to false")
    if strategy.dispatcher is not DispatcherName.all_to_all or degrees.etp > 1:
        raise ConfigError(f"{said} hides strategy.dispatcher=all_to_all with strategy.etp=1; set these, or it to false")
    if degrees.pp > 1 and strategy.schedule not in PAIRED:
        names = ", ".join(name.value for name in PAIRED)
        raise ConfigError(
            f"{said}: strategy.schedule={strategy.schedule.value} has no forward beside a backward; set it to one of "
            f"{names}"
        )
    if n_micro_batches < 2:
        raise ConfigError(f"{said} takes 2 micro-batches a step or more, not 1: set train.micro_batch_size lower")
    if overlap.dispatch_chunks > 1:
        raise ConfigError(
            f"overlap.dispatch_chunks={overlap.dispatch_chunks}: overlap.forward_backward=true hides rows behind "
            "another micro-batch, all at once; set it to 1"
        )
    if strategy.reduction is Reduction.shard and overlap.reshard_after_forward:
        raise ConfigError(
            f"{said} goes back part by part, for which FSDP2's parameters must stay gathered: set "
            "overlap.reshard_after_forward=false"
        )
    if strategy.reduction is Reduction.shard and overlap.optimizer:
        raise ConfigError(
            f"overlap.optimizer=true: under {said[:-5]} FSDP2 reduces gradients when all are there; set one to false"
        )


def _check_early_updates(strategy: StrategyConfig, overlap: OverlapConfig, splits_backward: bool) -> None:
    if not overlap.optimizer:
        return
    if strategy.reduction is Reduction.none:
        raise ConfigError(
            "overlap.optimizer=true: with strategy.reduction=none no gradient is reduced over data-parallel ranks; set "
            "it to false, or choose strategy=ddp, zero1 or fsdp"
        )
    if splits_backward and strategy.reduction is Reduction.shard:
        raise ConfigError(
            f"overlap.optimizer=true: strategy.schedule={strategy.schedule.value} computes weight gradients apart, "
            "which FSDP2 reduces when all are there; set it to false, or choose another schedule"
        )
    if not overlap.grad_reduce:
        raise ConfigError(
            "overlap.optimizer=true: with overlap.grad_reduce=false no gradient is reduced before backward is over; "
            "set that to true"
        )


def _check_idle(strategy: StrategyConfig, degrees: Degrees) -> None:
    """Refuse what nothing would read."""
    default = StrategyConfig()
    if strategy.stages_per_rank is not None and strategy.stages_per_rank < 1:
        raise ConfigError(f"strategy.stages_per_rank={strategy.stages_per_rank}: set it to at least 1, or null")
    if degrees.pp == 1:
        for name in ("schedule", "stages_per_rank"):
            if (value := getattr(strategy, name)) != getattr(default, name):
                shown = getattr(value, "value", value)
                raise ConfigError(f"strategy.{name}={shown}: with strategy.pp=1 there is no pipeline; leave it out")
    if degrees.ep == 1 and strategy.dispatcher is not default.dispatcher:
        raise ConfigError(
            f"strategy.dispatcher={strategy.dispatcher.value}: with strategy.ep=1 no row travels; leave it out"
        )
    if degrees.ep == 1 and strategy.placement is not default.placement:
        raise ConfigError(
            f"strategy.placement={strategy.placement.value}: with strategy.ep=1 a rank has all experts; leave it out"
        )
