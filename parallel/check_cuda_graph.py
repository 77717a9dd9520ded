"""What strategy.cuda_graph asks of a job: every rule, before any process group.

A graph launches kernels with the sizes that it was made with, and asks nobody: so within forward and backward the host
may wait for no number, and no rank for another.
"""

import torch

from models.config import ConfigError, ModelConfig
from models.experts import loops_on_gpu
from parallel.config import EngineName, OverlapConfig, PrecisionConfig, Reduction, StrategyConfig
from parallel.expert_parallel.build import RowRoom
from parallel.mesh import Degrees

SAID = "strategy.cuda_graph=true"


def check_cuda_graph(
    model: ModelConfig, strategy: StrategyConfig, overlap: OverlapConfig, precision: PrecisionConfig, degrees: Degrees
) -> None:
    """Refuse layouts in which somebody waits within forward or backward.

    Raises:
        ConfigError: naming the value to change.
    """
    if strategy.engine is not EngineName.native:
        raise ConfigError(
            f"{SAID}: strategy.engine={strategy.engine.value} has hooks within backward, which no graph runs; set it "
            "to false, or strategy.engine=native"
        )
    for name in ("pp", "tp", "ep", "etp"):
        if (degree := getattr(degrees, name)) > 1:
            raise ConfigError(
                f"{SAID}: with strategy.{name}={degree} ranks wait for each other within forward and backward; set it "
                f"to false, or strategy.{name}=1"
            )
    if strategy.reduction is Reduction.shard:
        raise ConfigError(
            f"{SAID}: strategy.reduction=shard gathers weights within forward and backward; set it to false, or use "
            "strategy=zero1 or ddp"
        )
    if degrees.world > 1 and overlap.grad_reduce:
        raise ConfigError(
            f"{SAID}: overlap.grad_reduce=true starts collectives from hooks within backward, which no graph runs; set "
            "one of them to false"
        )
    if model.n_dense_layers < model.n_layers:
        _check_experts(model, strategy, precision)


def _check_experts(model: ModelConfig, strategy: StrategyConfig, precision: PrecisionConfig) -> None:
    """Refuse those that ask the device how many rows they have."""
    if model.moe.batch_loss_weight:
        raise ConfigError(
            f"{SAID}: with model.moe.batch_loss_weight={model.moe.batch_loss_weight} loads are summed over ranks "
            "within forward; set it to false, or balance by model.moe.sequence_loss_weight"
        )
    if model.moe.capacity_factor is not None and strategy.rows is not RowRoom.static:
        raise ConfigError(
            f"{SAID}: with model.moe.capacity_factor={model.moe.capacity_factor} the host waits for how many rows "
            "there are; set strategy.rows=static"
        )
    _check_loop(model, precision, torch.device("cuda"))


def _check_loop(model: ModelConfig, precision: PrecisionConfig, device: torch.device) -> None:
    if why := loops_on_gpu(model, precision.compute.torch, 1, device):
        said, remedy = why
        raise ConfigError(
            f"{SAID}: {said}, and the host waits for how many rows each has; {remedy or 'set it to false'}"
        )


def check_cuda_graph_device(
    model: ModelConfig, strategy: StrategyConfig, precision: PrecisionConfig, device: torch.device
) -> None:
    """Refuse a device that has no such graphs, and one on which experts are a loop: see models/experts.py.

    Raises:
        ConfigError: saying which has.
    """
    if not strategy.cuda_graph:
        return
    if device.type != "cuda":
        raise ConfigError(f"{SAID}: there are graphs on a GPU, and none on {device.type}; leave it out")
    if model.n_dense_layers < model.n_layers:
        _check_loop(model, precision, device)
