"""All that a step of the native engine says between ranks, from the config, by closed forms."""

from models.config import ModelConfig
from parallel.comm_kind import CommKind
from parallel.config import OverlapConfig, PrecisionConfig, Reduction, StrategyConfig
from parallel.expert_parallel.build import DispatcherName
from parallel.mesh import Degrees
from parallel.pipeline.schedules import build_schedule
from parallel.pipeline.split import split_layers
from parallel.traffic.activations import MicroBatchTraffic
from parallel.traffic.gradients import gradient_traffic
from parallel.traffic.step_shape import StepShape
from parallel.traffic.tally import Channel, Traffic

DOUBLE_SIZE = 8
"""Bytes of a float64, and of an int64."""


def predict_traffic(
    model: ModelConfig,
    strategy: StrategyConfig,
    overlap: OverlapConfig,
    precision: PrecisionConfig,
    degrees: Degrees,
    step: StepShape,
) -> Traffic:
    """Of one optimizer step, summed over all ranks of the world: only the sum does not depend on how tokens are routed.

    Raises:
        ConfigError: if there is no such layout.
    """
    schedule = build_schedule(
        strategy.schedule, degrees.pp, step.n_micro_batches, strategy.stages_per_rank, overlap.forward_backward
    )
    layers = split_layers(model, schedule.n_stages, step.sequence_length)
    tokens = MicroBatchTraffic(model, strategy, overlap, precision, degrees, step)
    n_forwards = step.n_micro_batches * degrees.dp * degrees.tp
    parts = [
        gradient_traffic(model, strategy, overlap, precision, degrees, schedule, layers),
        tokens.total().times(n_forwards),
        _dropped(model, strategy, precision, degrees, step),
        _control(model, strategy, degrees, step),
    ]
    # A micro-batch goes through one chain: to the next stage, and its gradient back, where that is on another rank.
    hops = sum(a != b for a, b in zip(schedule.rank_of_stage[0], schedule.rank_of_stage[0][1:], strict=False))
    messages = Traffic()
    messages.add(Channel(CommKind.pp, "send", degrees.pp), 2 * hops, 2 * hops * tokens.hidden_bytes)
    messages.add(Channel(CommKind.pp, "receive", degrees.pp), 2 * hops, 0)
    return Traffic.total([*parts, messages.times(n_forwards)])


def _dropped(
    model: ModelConfig, strategy: StrategyConfig, precision: PrecisionConfig, degrees: Degrees, step: StepShape
) -> Traffic:
    """Rows beyond capacity, which stay at home: to the experts, back, and the same in backward."""
    traffic = Traffic()
    if degrees.ep > 1 and strategy.dispatcher is DispatcherName.all_to_all:
        row = model.dim * precision.compute.torch.itemsize
        # All ranks that split an expert by width would have sent it.
        rows = 4 * step.n_dropped * degrees.etp
        traffic.n_bytes[Channel(CommKind.ep, "all_to_all", degrees.ep)] -= rows * row
    return traffic


def _control(model: ModelConfig, strategy: StrategyConfig, degrees: Degrees, step: StepShape) -> Traffic:
    """Targets, gradient norm, what ranks ask of all (to stop), and what is logged: losses, and of each MoE layer
    models/routing_totals.py."""
    traffic, world = Traffic(), degrees.world
    if step.counts_targets:
        traffic.add(Channel(CommKind.control, "all_reduce", degrees.dp), world, world * DOUBLE_SIZE)
    all_reduce = Channel(CommKind.control, "all_reduce", world)
    sharded = strategy.reduction in (Reduction.shard, Reduction.shard_optimizer)
    if world > 1 and (sharded or degrees.pp * degrees.tp * degrees.ep > 1):
        traffic.add(all_reduce, world, world * DOUBLE_SIZE)
    numbers = 3 + (model.n_layers - model.n_dense_layers) * (2 * model.moe.n_routed + 3)
    traffic.add(all_reduce, world, world * numbers * DOUBLE_SIZE)
    return traffic
