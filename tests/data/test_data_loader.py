"""Batches: the same global batch for every layout and after every resume; with or without a thread."""

import threading
from typing import Any

import numpy as np
import pytest
import torch

from train.data.loader import BatchLoader, heldout_batches
from train.data.order import EpochShuffle
from train.data.stream import InOrder, ShuffledStream

CPU = torch.device("cpu")


class Counting:
    """Sample i is [i, i, i]; reading `broken` fails."""

    vocab_size = 1000

    def __init__(self, samples: int = 50, broken: int | None = None) -> None:
        self.samples = samples
        self.broken = broken

    def __len__(self) -> int:
        return self.samples

    def sample(self, index: int) -> np.ndarray:
        if index == self.broken:
            raise OSError(f"cannot read sample {index}")
        return np.full(3, index, dtype=np.int64)


def loader(**changes: Any) -> BatchLoader:
    defaults: dict[str, Any] = dict(
        stream=ShuffledStream(Counting(), seed=5),
        global_batch_size=16,
        micro_batch_size=2,
        dp_rank=0,
        dp_size=1,
        start_step=0,
        prefetch=0,
        device=CPU,
    )
    return BatchLoader(**(defaults | changes))


def samples(tokens: torch.Tensor) -> list[int]:
    """Which samples a batch of Counting holds, in order."""
    return tokens[..., 0].flatten().tolist()


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize(("dp_size", "micro"), [(1, 1), (1, 16), (2, 1), (2, 4), (4, 2), (4, 4)])
def test_every_layout_takes_the_same_global_batch(dp_size: int, micro: int, prefetch: int) -> None:
    order = EpochShuffle(50, seed=5)
    layout: dict[str, Any] = dict(dp_size=dp_size, micro_batch_size=micro, prefetch=prefetch)
    ranks = [loader(dp_rank=rank, **layout) for rank in range(dp_size)]
    for step in range(5):  # past the end of the first epoch
        batches = [next(rank) for rank in ranks]
        for tokens_MBS in batches:
            assert tokens_MBS.shape == (16 // (dp_size * micro), micro, 3)
            assert tokens_MBS.dtype == torch.int64
        # Side by side along the micro-batch's sequences, the ranks give the stream in order.
        assert samples(torch.cat(batches, dim=1)) == [order[step * 16 + i] for i in range(16)]
    for rank in ranks:
        rank.close()


@pytest.mark.parametrize("prefetch", [0, 3])
def test_resuming_equals_skipping(prefetch: int) -> None:
    with loader(prefetch=prefetch) as whole, loader(prefetch=prefetch, start_step=3) as resumed:
        for _ in range(3):
            next(whole)
        for _ in range(3):
            assert torch.equal(next(whole), next(resumed))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_error_of_the_source_surfaces_at_its_step(prefetch: int) -> None:
    broken = EpochShuffle(50, seed=5)[2 * 16 + 3]
    with loader(stream=ShuffledStream(Counting(broken=broken), seed=5), prefetch=prefetch) as batches:
        next(batches)
        next(batches)
        for _ in range(2):  # never skipped, never a wait for a thread that is gone
            with pytest.raises(OSError, match=f"cannot read sample {broken}"):
                next(batches)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_closing_ends_the_thread(prefetch: int) -> None:
    before = set(threading.enumerate())
    with loader(prefetch=prefetch) as batches:
        next(batches)
        threads = set(threading.enumerate()) - before
        assert len(threads) == (1 if prefetch else 0)
        assert all(thread.daemon for thread in threads)
    assert not any(thread.is_alive() for thread in threads)
    with pytest.raises(RuntimeError, match="closed"):
        next(batches)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(global_batch_size=15), "global_batch_size 15 is not a positive multiple"),
        (dict(global_batch_size=0), "global_batch_size 0"),
        (dict(micro_batch_size=0), "micro_batch_size 0"),
        (dict(dp_rank=2, dp_size=2), "rank 2 is not one of 2"),
        (dict(start_step=-1), "start_step -1"),
    ],
)
def test_loader_refuses_impossible_numbers(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loader(**changes)


@pytest.mark.parametrize(("dp_size", "micro"), [(1, 2), (2, 3), (4, 1), (4, 3)])
def test_heldout_batches_are_alike_on_every_rank_and_cover_the_count(dp_size: int, micro: int) -> None:
    ranks = [list(heldout_batches(InOrder(Counting()), 24, micro, rank, dp_size, CPU)) for rank in range(dp_size)]
    shapes = [[tokens_BS.shape for tokens_BS in batches] for batches in ranks]
    assert shapes == [[(micro, 3)] * (24 // (dp_size * micro))] * dp_size
    assert sorted(i for batches in ranks for tokens_BS in batches for i in samples(tokens_BS)) == list(range(24))


def test_heldout_batches_wrap_around_a_small_source() -> None:
    (tokens_BS,) = heldout_batches(InOrder(Counting(samples=3)), 4, 4, 0, 1, CPU)
    assert samples(tokens_BS) == [0, 1, 2, 0]


@pytest.mark.parametrize("count", [-4, 0, 6])
def test_heldout_batches_refuse_an_uneven_count_at_the_call(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} held-out samples are not a positive multiple"):
        heldout_batches(InOrder(Counting()), count, 2, 0, 2, CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("prefetch", [0, 2])
def test_batches_reach_the_gpu_whole(prefetch: int) -> None:
    """Many copies in flight behind a busy stream: a pinned block reused too early would change an earlier batch."""
    device = torch.device("cuda")
    busy = torch.randn(4096, 4096, device=device)
    with loader(prefetch=prefetch, device=device) as on_gpu, loader() as on_cpu:
        batches = []
        for _ in range(50):
            busy = busy @ busy
            batches.append(next(on_gpu))
        assert all(torch.equal(tokens_MBS.cpu(), next(on_cpu)) for tokens_MBS in batches)
    (tokens_BS,) = heldout_batches(InOrder(Counting()), 4, 4, 0, 1, device)
    assert samples(tokens_BS) == [0, 1, 2, 3]
