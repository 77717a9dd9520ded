"""strategy.dispatcher=symmetric_memory without GPUs: its kernels interpreted, a file for the memory that is shared."""

import pytest
from harness.interpreted import NEEDS_TRITON, check_interpreted, interpreted
from harness.torchrun import torchrun


@NEEDS_TRITON
def test_kernels_are_torchs_operators() -> None:
    check_interpreted("harness.kernels_beside_peer_rows")


@NEEDS_TRITON
@pytest.mark.parametrize("n_ranks", [2, 4])
def test_it_is_all_gather(n_ranks: int) -> None:
    """Forward and back, of a layer and of whole steps, which say what is predicted."""
    done = torchrun(n_ranks, module="harness.taken_beside_gathered", env=interpreted(), timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
