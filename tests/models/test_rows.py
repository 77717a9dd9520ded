"""model.row_backend: rows by kernels of ours where they run, by torch's operators elsewhere."""

import torch
from harness.interpreted import check_interpreted, needs_triton

from models.config import ModelConfig, RowBackend
from models.rows import OnePassRows, build_rows
from models.transformer import Transformer


@needs_triton
def test_kernels_are_torchs_operators() -> None:
    check_interpreted("harness.kernels_beside_rows")


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
