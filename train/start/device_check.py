"""What a job asks of the device that it runs on: every rule, for whoever starts one, or has it started elsewhere."""

import torch

from conf.schema import JobConfig
from parallel.check import check_peers, check_room_device
from parallel.check_cuda_graph import check_cuda_graph_device
from parallel.check_engine import check_engine_device
from parallel.check_fp8 import check_fp8_device
from parallel.mesh import Degrees
from train.start.compilers import check_compilers, check_expert_kernels
from train.trace.ranges import check_nvtx


def check_kind(config: JobConfig, degrees: Degrees, device: torch.device) -> None:
    """Refuse what `device` cannot do. Without an index it may be another machine's: its kind alone is known.

    Raises:
        ConfigError: one line that says what to change.
    """
    check_engine_device(config.strategy, device)
    check_cuda_graph_device(config.model, config.strategy, config.precision, device)
    check_fp8_device(config.precision, device)
    check_room_device(config.model, config.strategy, config.precision.compute, degrees, device)
    check_expert_kernels(config.model, device)
    check_peers(config.strategy, degrees, device)
    check_nvtx(config.measure.nvtx, device)


def check_device(config: JobConfig, degrees: Degrees, device: torch.device) -> None:
    """Refuse what `device` of this machine cannot do, or what nothing here compiles.

    Raises:
        ConfigError: one line that says what to change.
    """
    check_kind(config, degrees, device)
    check_compilers(config, device)
