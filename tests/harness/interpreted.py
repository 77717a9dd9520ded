"""Triton kernels on a CPU, by Triton's interpreter, which is chosen before Triton is imported."""

import importlib
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

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


def let_loops_count() -> None:
    """Have the interpreter's kernels loop up to numbers that they loaded: Triton 3.6 makes an int of an array, of which
    numpy 2.4 makes none."""
    interpreter = importlib.import_module("triton.runtime.interpreter")
    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched
