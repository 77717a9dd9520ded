"""Which layouts and devices multiply in float8: every rule of precision.matmul=fp8, before any process group."""

import torch

from models.config import ConfigError, ModelConfig
from models.fp8_linear import check_fp8_sizes
from parallel.config import EngineName, Matmul, OverlapConfig, PrecisionConfig, StrategyConfig
from parallel.mesh import Degrees
from parallel.pipeline.schedules import build_schedule

SAID = "precision.matmul=fp8"
FIRST_CAPABILITY = (9, 0)
"""Hopper's."""


def check_fp8(
    model: ModelConfig, strategy: StrategyConfig, overlap: OverlapConfig, degrees: Degrees, n_micro_batches: int
) -> None:
    """Refuse what does not multiply in float8, or would do it in vain.

    Raises:
        ConfigError: naming the value to change.
    """
    if strategy.engine is not EngineName.native:
        raise ConfigError(
            f"{SAID}: strategy.engine={strategy.engine.value} multiplies in precision.compute; set it to default, or "
            "strategy.engine=native"
        )
    if degrees.tp > 1:
        raise ConfigError(
            f"{SAID}: with strategy.tp={degrees.tp} a rank has a part of each row, and would scale that by itself; set "
            "it to default, or strategy.tp=1"
        )
    schedule = build_schedule(
        strategy.schedule, degrees.pp, n_micro_batches, strategy.stages_per_rank, overlap.forward_backward
    )
    if schedule.splits_backward:
        raise ConfigError(
            f"{SAID}: strategy.schedule={strategy.schedule.value} splits backward, and each half would compute both "
            "gradients; set it to default, or choose another schedule"
        )
    check_fp8_sizes(model)


def check_fp8_device(precision: PrecisionConfig, device: torch.device) -> None:
    """Refuse a GPU that has no such products; of a `device` without an index that is not known.

    Raises:
        ConfigError: saying which have.
    """
    if precision.matmul is Matmul.default or device.type != "cuda" or device.index is None:
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < FIRST_CAPABILITY:
        has, needs = (".".join(map(str, pair)) for pair in (capability, FIRST_CAPABILITY))
        raise ConfigError(
            f"{SAID}: {torch.cuda.get_device_name(device)} (compute capability {has}) has no such products, which need "
            f"{needs}; use precision=bf16"
        )
