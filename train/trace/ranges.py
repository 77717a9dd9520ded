"""Named ranges in a timeline: of torch's profiler, or of Nsight Systems."""

from contextlib import AbstractContextManager

import torch
from torch.profiler import record_function

from models.config import ConfigError
from parallel.clock.phase_clock import NUMBERED


def profiler_range(name: str) -> AbstractContextManager[None]:
    """Shown by torch.profiler, while one records."""
    return record_function(name)


def nvtx_range(name: str) -> AbstractContextManager[None]:
    """Shown by `nsys profile`: without the collective's number, since its statistics add up what has one name."""
    return torch.cuda.nvtx.range(name.partition(NUMBERED)[0])


def check_nvtx(wanted: bool, device: torch.device) -> None:
    """Raises:
    ConfigError: for NVTX ranges without a GPU.
    """
    if wanted and device.type != "cuda":
        raise ConfigError("measure.nvtx=true: NVTX ranges are of GPUs, and this job runs on CPU; set it to false")
