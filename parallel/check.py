"""What a layout asks of the model and the batch: every rule that ties them, before any process group."""

import torch

from models.config import ConfigError, ExpertBackend, ModelConfig
from models.experts import loops_on_gpu
from parallel.check_overlap import check_hand_made_gradients, check_overlap
from parallel.config import Dtype, OverlapConfig, Recompute, StrategyConfig
from parallel.expert_parallel.build import DispatcherName, RowRoom, check_expert_parallel
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
    if strategy.rows is RowRoom.static:
        _check_room(model, strategy, degrees)
    if degrees.ep * degrees.etp > 1 and model.n_dense_layers == model.n_layers:
        raise ConfigError(
            f"strategy.ep={degrees.ep} strategy.etp={degrees.etp}: model.n_dense_layers={model.n_dense_layers} leaves "
            "no layer with experts; set them to 1"
        )
    check_expert_parallel(model.moe, degrees.ep, degrees.etp)
    if strategy.dispatcher is DispatcherName.symmetric_memory and degrees.etp > 1:
        raise ConfigError(
            f"strategy.dispatcher=symmetric_memory: with strategy.etp={degrees.etp} all pairs go to all ranks of a "
            "part; set that to 1, or strategy.dispatcher=all_gather"
        )
    if degrees.tp > 1:
        check_tensor_parallel(model, degrees.tp, sequence_length)
    check_overlap(model, strategy, overlap, degrees, n_micro_batches, sequence_length)
    schedule = build_schedule(
        strategy.schedule, degrees.pp, n_micro_batches, strategy.stages_per_rank, overlap.forward_backward
    )
    split_layers(model, schedule.n_stages, sequence_length)
    check_hand_made_gradients(strategy, overlap, schedule)
    if schedule.splits_backward and model.expert_backend in (ExpertBackend.fused, ExpertBackend.triton):
        raise ConfigError(
            f"model.expert_backend={model.expert_backend.value}: strategy.schedule={strategy.schedule.value} splits "
            "backward, and each half would do most of both; set it to auto or grouped_mm, or choose another schedule"
        )
    if strategy.compile:
        _check_compile(model, strategy, degrees, schedule.splits_backward)
    if schedule.splits_backward and strategy.recompute is not Recompute.none:
        raise ConfigError(
            f"strategy.recompute={strategy.recompute.value}: strategy.schedule={strategy.schedule.value} splits "
            "backward, and each half would compute again; set it to none, or choose another schedule"
        )


def _check_compile(model: ModelConfig, strategy: StrategyConfig, degrees: Degrees, splits_backward: bool) -> None:
    """Refuse graphs with a collective inside, and those of which half a backward is asked for."""
    said = "strategy.compile=true"
    if degrees.tp > 1:
        raise ConfigError(
            f"{said}: with strategy.tp={degrees.tp} sequences are gathered inside what would be compiled; set it to "
            "false, or strategy.tp=1"
        )
    if model.moe.batch_loss_weight and degrees.world > 1:
        raise ConfigError(
            f"{said}: with model.moe.batch_loss_weight={model.moe.batch_loss_weight} loads are summed over ranks "
            "inside what would be compiled; set it to false, or balance by model.moe.sequence_loss_weight"
        )
    if strategy.recompute is Recompute.selective:
        raise ConfigError(
            f"{said}: what is cheap is computed again within a graph anyway; set strategy.recompute to none or full"
        )
    if splits_backward:
        raise ConfigError(
            f"{said}: strategy.schedule={strategy.schedule.value} splits backward, which a graph does whole; set it to "
            "false, or choose another schedule"
        )


def _check_room(model: ModelConfig, strategy: StrategyConfig, degrees: Degrees) -> None:
    """Refuse room for all rows where their number is known, or waited for anyway."""
    said = "strategy.rows=static:"
    if model.expert_backend is ExpertBackend.loop:
        raise ConfigError(
            f"{said} model.expert_backend=loop asks the device how many rows each expert has; set that to auto, or "
            "strategy.rows=exact"
        )
    if degrees.ep > 1 and strategy.dispatcher is DispatcherName.all_to_all:
        raise ConfigError(
            f"{said} strategy.dispatcher={strategy.dispatcher.value} waits for how many rows come; set that to "
            "all_gather, or strategy.rows=exact"
        )
    if degrees.ep == 1 and (model.moe.capacity_factor is None or model.n_dense_layers == model.n_layers):
        raise ConfigError(
            f"{said} with strategy.ep=1, and no expert with a capacity, every pair has a row and nobody waits; leave "
            "it out"
        )


def check_room_device(
    model: ModelConfig, strategy: StrategyConfig, compute: Dtype, degrees: Degrees, device: torch.device
) -> None:
    """Refuse room for all rows on a GPU where experts are a loop: see models/experts.py.

    Raises:
        ConfigError: naming the value to change.
    """
    if strategy.rows is not RowRoom.static or device.type != "cuda":
        return
    if why := loops_on_gpu(model, compute.torch, degrees.etp, device):
        said, remedy = why
        raise ConfigError(
            f"strategy.rows=static: {said}, and the host waits for how many rows each has; "
            f"{f'{remedy}, or' if remedy else 'use'} strategy.rows=exact"
        )


def check_peers(strategy: StrategyConfig, degrees: Degrees, device: torch.device) -> None:
    """Refuse memory that ranks share where GPUs cannot address each other's. Ranks of a machine have its GPUs in order.
    Of a `device` without an index only the kind is known.

    Raises:
        ConfigError: saying which dispatcher to take.
    """
    if strategy.dispatcher is not DispatcherName.symmetric_memory:
        return
    if device.type != "cuda":
        raise ConfigError(
            f"strategy.dispatcher=symmetric_memory: GPUs read each other's memory, a {device.type} does not; set it to "
            "all_gather"
        )
    if device.index is None:  # of another machine
        return
    first = device.index // degrees.ep * degrees.ep
    for peer in range(first, first + degrees.ep):
        if peer != device.index and not torch.cuda.can_device_access_peer(device, peer):
            raise ConfigError(
                f"strategy.dispatcher=symmetric_memory: GPU {device.index} cannot address the memory of GPU {peer}; "
                "set it to all_gather"
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
