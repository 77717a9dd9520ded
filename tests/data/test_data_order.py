"""The order of samples: a permutation each epoch, known values, any position at once."""

import pytest

from train.data.order import EpochShuffle


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 63, 64, 65, 255, 256, 257, 1000])
def test_every_epoch_is_a_permutation(n: int) -> None:
    order = EpochShuffle(n, seed=3)
    for epoch in range(3):
        assert sorted(order[epoch * n + i] for i in range(n)) == list(range(n))


def test_order_never_changes() -> None:
    """A run resumed by a later version must go on where it was: if this fails, every old run's data order is lost."""
    assert [EpochShuffle(10, seed=0)[p] for p in range(20)] == [
        *(0, 3, 6, 7, 2, 8, 4, 1, 5, 9),
        *(3, 2, 6, 1, 9, 0, 7, 8, 4, 5),
    ]
    assert [EpochShuffle(2**40, seed=7)[p] for p in (0, 1, 2**40)] == [305633788518, 406223906253, 214052070449]


def test_epochs_and_seeds_differ() -> None:
    order = EpochShuffle(100, seed=0)
    first = [order[p] for p in range(100)]
    assert first != [order[100 + p] for p in range(100)]
    assert first != [EpochShuffle(100, seed=1)[p] for p in range(100)]


def test_order_is_shuffled_evenly() -> None:
    """Over many seeds each sample comes first about equally often, also where the domain is tiny."""
    firsts = [EpochShuffle(5, seed)[0] for seed in range(1000)]
    assert all(150 < firsts.count(index) < 250 for index in range(5))  # 200 ± 4 standard deviations


def test_huge_corpora_need_no_table() -> None:
    order = EpochShuffle(2**40, seed=1)
    indices = [order[2**40 - 1 - p] for p in range(1000)]
    assert len(set(indices)) == 1000
    assert all(0 <= index < 2**40 for index in indices)


def test_refuses_what_has_no_order() -> None:
    with pytest.raises(ValueError, match="cannot order 0 samples"):
        EpochShuffle(0, seed=0)
    with pytest.raises(IndexError, match="before the first"):
        EpochShuffle(3, seed=0)[-1]
