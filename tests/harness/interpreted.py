"""Triton kernels on a CPU, by Triton's interpreter, which is chosen before Triton is imported.

torch for CPUs comes without Triton. `make soak` lays it aside, for these processes alone: torch's compiler, where it
finds it, asks it for devices.
"""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ASIDE = Path(sys.prefix) / "triton"
THERE = find_spec("triton") is not None or ASIDE.is_dir()


def needs_triton(test: Callable[..., None]) -> Callable[..., None]:
    """A test of `make soak`, which brings it."""
    without = pytest.mark.skipif(not THERE, reason=f"no Triton, and none in {ASIDE}: `make soak` lays it there")
    return pytest.mark.soak(without(test))


def interpreted() -> dict[str, str]:
    """What to add to the environment of a process that imports what this one does, and Triton."""
    return {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([*sys.path, str(ASIDE)])}


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
