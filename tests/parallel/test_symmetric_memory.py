"""strategy.dispatcher=symmetric_memory without GPUs: its kernels interpreted, a file for the memory that is shared."""

import pytest
from harness.interpreted import check_interpreted, interpreted, needs_triton
from harness.torchrun import torchrun


@needs_triton
def test_kernels_are_torchs_operators() -> None:
    check_interpreted("harness.kernels_beside_peer_rows")


@needs_triton
@pytest.mark.parametrize("n_ranks", [2, 4])
def test_it_is_all_gather(n_ranks: int) -> None:
    """Forward and back, of a layer and of whole steps, which say what is predicted."""
    done = torchrun(n_ranks, module="harness.taken_beside_gathered", env=interpreted(), timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
