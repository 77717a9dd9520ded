"""What a layout asks of the model and the batch: every rule that ties them, before any process group."""

from models.config import ConfigError, ModelConfig
from parallel.config import EngineName, OverlapConfig, Recompute, Reduction, StrategyConfig
from parallel.expert_parallel.build import DispatcherName, check_expert_parallel
from parallel.mesh import Degrees
from parallel.pipeline.schedules import build_schedule
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
    _check_travel(model, strategy, overlap, degrees)
    schedule = build_schedule(strategy.schedule, degrees.pp, n_micro_batches, strategy.stages_per_rank)
    split_layers(model, schedule.n_stages, sequence_length)
    sharding = strategy.reduction is Reduction.shard and strategy.engine is EngineName.native
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
