"""Triton kernels on a CPU, by Triton's interpreter, which is chosen before Triton is imported."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

NEEDS_TRITON = pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton comes with torch for CUDA; tests/gpu runs the kernels"
)


def interpreted() -> dict[str, str]:
    """What to add to the environment of a process that imports what this one does."""
    return {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


def check_interpreted(module: str) -> None:
    """Run `python -m module`, which raises where a kernel is wrong."""
    done = subprocess.run(
        [sys.executable, "-m", module],
        env=os.environ | interpreted(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
