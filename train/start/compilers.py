"""What compiles while a job runs because its words say so, and the compilers that it calls."""

import os
import shutil

import torch

from conf.schema import JobConfig
from models.config import ConfigError, ExpertBackend
from models.triton_here import triton_lacks
from parallel.expert_parallel.build import DispatcherName

CXX = ("c++", "g++", "clang++")


def check_compilers(config: JobConfig, device: torch.device) -> None:
    """On a CPU torch.compile calls a C++ compiler for all that it makes. On a GPU Triton calls a C compiler, with
    Python's headers, for what launches its kernels. What is auto does without.

    Raises:
        ConfigError: if the job would find no compiler.
    """
    if config.model.expert_backend is ExpertBackend.fused and device.type != "cuda":
        raise ConfigError(f"model.expert_backend=fused: its kernels run on a GPU, not on {device.type}; set it to auto")
    asked = ["strategy.compile=true"] if config.strategy.compile else []
    if device.type == "cuda":
        asked += ["optim.one_pass=true"] if config.optim.one_pass else []
        asked += ["model.expert_backend=fused"] if config.model.expert_backend is ExpertBackend.fused else []
        taken = config.strategy.dispatcher is DispatcherName.symmetric_memory
        asked += ["strategy.dispatcher=symmetric_memory"] if taken else []
    lacks = triton_lacks() if device.type == "cuda" else _cxx_lacks()
    if asked and lacks:
        raise ConfigError(f"{' '.join(asked)}: {lacks}, or leave that out")


def _cxx_lacks() -> str | None:
    named = os.environ.get("CXX")
    found = any(map(shutil.which, (named,) if named else CXX))
    return None if found else f"there is no compiler ({named or ', '.join(CXX)}); install one"
