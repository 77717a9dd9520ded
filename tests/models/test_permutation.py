"""Rows in another order."""

import pytest
import torch

from models.permutation import sort_pairs, transpose_blocks


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (4, 8), (3, 1), (1, 5)])
def test_blocks_laid_the_other_way_are_what_a_stable_sort_gives(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(7)
    for _ in range(20):
        counts_RC = torch.randint(0, 4, shape, generator=generator)
        n_rows = int(counts_RC.sum())
        place_N = torch.arange(shape[1]).repeat(shape[0]).repeat_interleave(counts_RC.flatten())
        order_N, inverse_N = transpose_blocks(counts_RC, n_rows)
        assert torch.equal(order_N, place_N.argsort(stable=True))
        assert torch.equal(order_N[inverse_N], torch.arange(n_rows))


@pytest.mark.parametrize("n_places", [3, 32766, 32767, 40000])
def test_pairs_are_sorted_by_place_and_those_without_one_are_left_out(n_places: int) -> None:
    """Also where places do not fit the short keys."""
    place_N = torch.tensor([n_places, n_places - 1, 0, n_places, n_places - 1, 1])
    pairs = sort_pairs(place_N, n_places, some_have_none=True)
    assert pairs.order_N.tolist() == [2, 5, 1, 4]
    assert pairs.inverse_N.tolist() == [4, 2, 0, 4, 3, 1]
    assert pairs.ends_E.tolist() == [1, *[2] * (n_places - 2), 4]
