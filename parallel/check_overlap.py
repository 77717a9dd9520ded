"""What each overlap knob asks of the layout; conf/idle_overlap.py has those that nothing reads."""

from models.config import ConfigError, ModelConfig
from parallel.config import EngineName, OverlapConfig, Reduction, StrategyConfig
from parallel.expert_parallel.build import DispatcherName
from parallel.mesh import Degrees
from parallel.pipeline.action import Schedule
from parallel.pipeline.schedules import PAIRED


def check_overlap(
    model: ModelConfig,
    strategy: StrategyConfig,
    overlap: OverlapConfig,
    degrees: Degrees,
    n_micro_batches: int,
    sequence_length: int,
) -> None:
    """Refuse knobs that the layout cannot have.

    Raises:
        ConfigError: naming the key and what to set it to.
    """
    if degrees.tp > 1 and (part := sequence_length // degrees.tp) % overlap.async_tp:
        raise ConfigError(
            f"overlap.async_tp={overlap.async_tp}: a rank's part of a sequence, {part} tokens, is not so many equal "
            "chunks; set it to a divisor of that, or to 1"
        )
    _check_parts(model, strategy, overlap, degrees)
    if overlap.forward_backward:
        _check_side_by_side(strategy, overlap, degrees, n_micro_batches)
    if overlap.optimizer:
        _check_early_updates(strategy, overlap, degrees)


def _check_parts(model: ModelConfig, strategy: StrategyConfig, overlap: OverlapConfig, degrees: Degrees) -> None:
    """Refuse parts of rows that do not travel, or of experts that are not there."""
    chunks = overlap.dispatch_chunks
    if chunks > 1 and degrees.ep == 1:
        raise ConfigError(f"overlap.dispatch_chunks={chunks}: with strategy.ep=1 no row travels; leave it out")
    if chunks > 1 and (degrees.etp > 1 or strategy.dispatcher is not DispatcherName.all_to_all):
        raise ConfigError(
            f"overlap.dispatch_chunks={chunks}: only strategy.dispatcher=all_to_all with strategy.etp=1 sends rows in "
            "parts; set it to 1"
        )
    if chunks > (slots := model.moe.n_routed // degrees.ep):
        raise ConfigError(f"overlap.dispatch_chunks={chunks}: a rank has {slots} experts; set it to at most {slots}")


def check_hand_made_gradients(strategy: StrategyConfig, overlap: OverlapConfig, schedule: Schedule) -> None:
    """Refuse what FSDP2 cannot do where its hooks do not see a whole backward.

    Raises:
        ConfigError: naming the key and what to set it to.
    """
    sharding = strategy.reduction is Reduction.shard and strategy.engine is EngineName.native
    if schedule.splits_backward and sharding and overlap.reshard_after_forward:
        raise ConfigError(
            f"strategy.schedule={strategy.schedule.value} computes weight gradients apart, for which FSDP2's "
            "parameters must stay gathered: set overlap.reshard_after_forward=false"
        )
    if schedule.splits_backward and sharding and overlap.optimizer:
        raise ConfigError(
            f"overlap.optimizer=true: strategy.schedule={strategy.schedule.value} computes weight gradients apart, "
            "which FSDP2 reduces when all are there; set it to false, or choose another schedule"
        )


def _check_early_updates(strategy: StrategyConfig, overlap: OverlapConfig, degrees: Degrees) -> None:
    """Refuse updates behind backward where gradients are reduced after it."""
    if strategy.reduction is Reduction.none:
        raise ConfigError(
            "overlap.optimizer=true: with strategy.reduction=none no gradient is reduced over data-parallel ranks; set "
            "it to false, or choose strategy=ddp, zero1 or fsdp"
        )
    if degrees.world == 1:
        raise ConfigError("overlap.optimizer=true: on one rank no gradient is reduced; set it to false")
    if not overlap.grad_reduce:
        raise ConfigError(
            "overlap.optimizer=true: with overlap.grad_reduce=false no gradient is reduced before backward is over; "
            "set that to true"
        )
    if overlap.forward_backward and strategy.reduction is Reduction.shard:
        raise ConfigError(
            "overlap.optimizer=true: with overlap.forward_backward=true FSDP2 reduces gradients when all are there; "
            "set one of them to false"
        )


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
