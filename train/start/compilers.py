"""What compiles while a job runs, and the compilers that it calls."""

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch

from conf.schema import JobConfig
from models.config import ConfigError, ExpertBackend, RowBackend
from models.experts import grouped_mm_takes, has_triton

CXX, CC = ("c++", "g++", "clang++"), ("gcc", "clang")


def check_compilers(config: JobConfig, device: torch.device) -> None:
    """On a CPU torch.compile calls a C++ compiler for all that it makes. On a GPU Triton calls a C compiler, with
    Python's headers, for what launches its kernels.

    Raises:
        ConfigError: if the job would find no compiler.
    """
    if config.model.expert_backend is ExpertBackend.fused and device.type != "cuda":
        raise ConfigError(f"model.expert_backend=fused: its kernels run on a GPU, not on {device.type}; set it to auto")
    asked = ["strategy.compile=true"] if config.strategy.compile else []
    instead = "leave that out"
    if device.type == "cuda":
        asked += ["optim.one_pass=true"] if config.optim.one_pass else []
        asked += ["model.row_backend=auto"] if config.model.row_backend is RowBackend.auto else []
        if _fuses_experts(config):
            instead = "set model.expert_backend=grouped_mm" + (" and leave the rest out" if asked else "")
            asked.append(f"model.expert_backend={config.model.expert_backend.value}")
    if not asked:
        return
    said = f"{' '.join(asked)}:"
    variable, names = ("CC", CC) if device.type == "cuda" else ("CXX", CXX)
    named = os.environ.get(variable)
    if not any(map(shutil.which, (named,) if named else names)):
        raise ConfigError(f"{said} there is no compiler ({named or ', '.join(names)}); install one, or {instead}")
    if device.type != "cuda":
        return
    if importlib.util.find_spec("triton") is None:
        raise ConfigError(f"{said} there is no package triton; install a build of torch for CUDA, or {instead}")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        raise ConfigError(f"{said} Triton compiles with Python.h, which is not there; install Python's headers (dev)")


def _fuses_experts(config: JobConfig) -> bool:
    """Whether experts on a GPU may be `fused`: in some layouts auto takes grouped_mm after all."""
    model, compute = config.model, config.precision.compute.torch
    if model.expert_backend is not ExpertBackend.auto:
        return model.expert_backend is ExpertBackend.fused
    aligned = grouped_mm_takes(model.dim, model.moe.expert_dim, compute.itemsize)
    return compute is torch.bfloat16 and aligned and model.n_dense_layers < model.n_layers and has_triton()
