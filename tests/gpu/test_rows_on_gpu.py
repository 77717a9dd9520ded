"""model.row_backend=auto on a GPU: kernels of ours beside torch's operators in float64."""

import pytest
import torch
from harness.kernels_beside_rows import main

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_kernels_are_torchs_operators() -> None:
    main("cuda")
