"""Whether kernels in Triton can be made here."""

import os
import shutil
import sysconfig
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

CC = ("gcc", "clang")
"""C compilers by which Triton makes what launches its kernels, unless the variable CC names one."""
HOPPER = (9, 0)
"""Compute capability of H100, H200 and GH200. Others have other tensor cores, or less shared memory."""


def kernels_run(x: Tensor) -> bool:
    """Whether kernels of ours, which compute in float32, can take `x`."""
    return x.is_cuda and x.dtype is not torch.float64 and not triton_lacks()


@cache
def hopper_lacks(device: torch.device) -> str | None:
    """What `device`, a GPU, has that is not what models/grouped_product_kernel.py is made for; None: it is that."""
    capability = torch.cuda.get_device_capability(device)
    return None if capability == HOPPER else "this GPU's compute capability is {}.{}".format(*capability)


@cache
def triton_lacks() -> str | None:
    """What of its needs is not there, and what to do about it; None: nothing."""
    if find_spec("triton") is None:
        return "there is no package triton; install a build of torch for CUDA"
    named = os.environ.get("CC")
    if not any(map(shutil.which, (named,) if named else CC)):
        return f"there is no compiler ({named or ', '.join(CC)}); install one"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        return "Triton compiles with Python.h, which is not there; install Python's headers (dev)"
    return None
