"""model.row_backend: rows by kernels of ours where they run, by torch's operators elsewhere."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from models.config import ModelConfig, RowBackend
from models.rows import OnePassRows, build_rows
from models.transformer import Transformer


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton comes with torch for CUDA; tests/gpu runs the kernels")
def test_kernels_are_torchs_operators() -> None:
    """By Triton's interpreter, which is chosen before Triton is imported."""
    done = subprocess.run(
        [sys.executable, "-m", "harness.kernels_beside_rows"],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_where_kernels_do_not_run_auto_is_torch() -> None:
    assert isinstance(build_rows(RowBackend.auto), OnePassRows)
    assert not isinstance(build_rows(RowBackend.torch), OnePassRows)
    losses = []
    for backend in RowBackend:
        torch.manual_seed(0)
        model = Transformer(ModelConfig(row_backend=backend), torch.float32)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        tokens_BS = torch.arange(32).view(2, 16) % model.config.vocab_size
        losses.append(model(tokens_BS, tokens_BS).cross_entropy_sum.item())
    assert losses[0] == losses[1]
