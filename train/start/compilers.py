"""What compiles while a job runs, and the compilers that it calls."""

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch

from conf.schema import JobConfig
from models.config import ConfigError, LossBackend, RowBackend

CXX, CC = ("c++", "g++", "clang++"), ("gcc", "clang")


def check_compilers(config: JobConfig, device: torch.device) -> None:
    """On a CPU torch.compile calls a C++ compiler for all that it makes. On a GPU Triton calls a C compiler, with
    Python's headers, for what launches its kernels.

    Raises:
        ConfigError: if the job would find no compiler.
    """
    asked = ["strategy.compile=true"] if config.strategy.compile else []
    if device.type == "cuda":
        asked += ["optim.one_pass=true"] if config.optim.one_pass else []
        asked += ["model.row_backend=auto"] if config.model.row_backend is RowBackend.auto else []
        asked += ["model.loss_backend=auto"] if config.model.loss_backend is LossBackend.auto else []
    if not asked:
        return
    said = f"{' '.join(asked)}:"
    variable, names = ("CC", CC) if device.type == "cuda" else ("CXX", CXX)
    named = os.environ.get(variable)
    if not any(map(shutil.which, (named,) if named else names)):
        raise ConfigError(f"{said} there is no compiler ({named or ', '.join(names)}); install one, or leave that out")
    if device.type != "cuda":
        return
    if importlib.util.find_spec("triton") is None:
        raise ConfigError(f"{said} there is no package triton; install a build of torch for CUDA, or leave that out")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        raise ConfigError(f"{said} Triton compiles with Python.h, which is not there; install Python's headers (dev)")
