"""What compiles while a job runs because its words say so, and the compilers that it calls."""

import os
import shutil

import torch

from conf.schema import JobConfig
from models.config import ConfigError, ExpertBackend, ModelConfig
from models.triton_here import hopper_lacks, triton_lacks
from parallel.expert_parallel.build import DispatcherName

CXX = ("c++", "g++", "clang++")
OURS = (ExpertBackend.fused, ExpertBackend.triton)
"""Experts by kernels of ours."""


def check_expert_kernels(model: ModelConfig, device: torch.device) -> None:
    """Refuse a device that runs no kernel of ours.

    Raises:
        ConfigError: saying which does.
    """
    if model.expert_backend in OURS and device.type != "cuda":
        backend = model.expert_backend.value
        raise ConfigError(
            f"model.expert_backend={backend}: its kernels run on a GPU, not on {device.type}; set it to auto"
        )


def check_compilers(config: JobConfig, device: torch.device) -> None:
    """On a CPU torch.compile calls a C++ compiler for all that it makes. On a GPU Triton calls a C compiler, with
    Python's headers, for what launches its kernels. What is auto does without.

    Raises:
        ConfigError: if the job would find no compiler, or not the GPU that its kernels are for.
    """
    backend = config.model.expert_backend
    experts = f"model.expert_backend={backend.value}"
    asked = ["strategy.compile=true"] if config.strategy.compile else []
    if device.type == "cuda":
        asked += ["optim.one_pass=true"] if config.optim.one_pass else []
        asked += [experts] if backend in OURS else []
        taken = config.strategy.dispatcher is DispatcherName.symmetric_memory
        asked += ["strategy.dispatcher=symmetric_memory"] if taken else []
    lacks = triton_lacks() if device.type == "cuda" else _cxx_lacks()
    if asked and lacks:
        raise ConfigError(f"{' '.join(asked)}: {lacks}, or leave that out")
    if device.type == "cuda" and backend is ExpertBackend.triton and (other := hopper_lacks(device)):
        raise ConfigError(f"{experts}: its products are made for Hopper (9.0), and {other}; set it to auto or fused")


def _cxx_lacks() -> str | None:
    named = os.environ.get("CXX")
    found = any(map(shutil.which, (named,) if named else CXX))
    return None if found else f"there is no compiler ({named or ', '.join(CXX)}); install one"
