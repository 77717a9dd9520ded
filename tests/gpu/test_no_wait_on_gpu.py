"""The host waits for no number of a step's forward and backward, where there is room for all rows; and what lies past
the rows that there are does not show."""

import pytest
import torch
from harness.routed_step import model_on, step

from models.config import RowBackend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TOKENS_BS = torch.randint(0, 128, (4, 96), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("backend", RowBackend)
@pytest.mark.parametrize("n_ranks", [1, 2])
@pytest.mark.parametrize("room_for_all", [True, False])
def test_who_waits(backend: RowBackend, n_ranks: int, room_for_all: bool) -> None:
    model, tokens_BS = model_on("cuda", torch.bfloat16, backend, n_ranks, room_for_all), TOKENS_BS.cuda()
    for _ in range(2):  # compiles, and makes what is kept
        step(model, tokens_BS)
    torch.cuda.set_sync_debug_mode("error")
    try:
        if room_for_all:
            step(model, tokens_BS)
        else:
            with pytest.raises(RuntimeError, match="synchroniz"):
                step(model, tokens_BS)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("backend", RowBackend)
@pytest.mark.parametrize("n_ranks", [1, 2])
def test_what_lies_past_the_rows_does_not_show(backend: RowBackend, n_ranks: int) -> None:
    gradients = []
    for room_for_all in (False, True):
        model = model_on("cuda", torch.bfloat16, backend, n_ranks, room_for_all)
        spoilt = torch.full((2**26,), torch.nan, device="cuda")
        del spoilt  # what is allocated from here on is found full of NaN
        step(model, TOKENS_BS.cuda())
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        assert expected is not None
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-2, atol=1e-2 * expected.abs().max().item())
