"""What a command imports before it knows what it is asked: a second of every start."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["conf.schema", "launch.bench.order", "launch.sweep.order", "launch.submit"])
def test_orders_are_read_without_torchs_compiler_or_pipelines(module: str) -> None:
    heavy = "[name for name in ('torch._dynamo', 'torch.distributed.pipelining') if name in sys.modules]"
    program = f"import sys, {module}; print({heavy})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
