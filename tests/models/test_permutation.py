"""Rows in another order."""

import pytest
import torch

from models.permutation import from_rows, sort_pairs, to_rows, transpose_blocks


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
def test_pairs_are_sorted_by_place_and_those_without_one_are_last_or_cut_off(n_places: int) -> None:
    """Also where places do not fit the short keys."""
    place_N = torch.tensor([n_places, n_places - 1, 0, n_places, n_places - 1, 1])
    pairs = sort_pairs(place_N, n_places, some_have_none=True)
    assert pairs.order_N.tolist() == [2, 5, 1, 4, 0, 3]
    assert pairs.inverse_N.tolist() == [4, 2, 0, 5, 3, 1]
    assert pairs.end_1.tolist() == [4]
    pairs = pairs.cut(4)
    assert pairs.order_N.tolist() == [2, 5, 1, 4]
    assert pairs.inverse_N.tolist() == [4, 2, 0, 4, 3, 1]
    assert pairs.ends_E.tolist() == [1, *[2] * (n_places - 2), 4]


@pytest.mark.parametrize("n_left", [0, 1, 5, 12])
def test_nothing_comes_of_rows_past_the_end(n_left: int) -> None:
    """Whatever they hold: as where those rows are cut off, forward and back."""
    generator = torch.Generator().manual_seed(n_left)
    place_N = torch.randint(0, 3, (12,), generator=generator)
    place_N[torch.randperm(12, generator=generator)[n_left:]] = 3
    x_TD = torch.randn(4, 5, generator=generator, requires_grad=True)
    grad_ND = torch.randn(12, 5, generator=generator)
    with_room = sort_pairs(place_N, 3, some_have_none=True)
    results = []
    for pairs in (with_room, with_room.cut(n_left)):
        rows_ND = to_rows(x_TD, pairs, 3)
        assert len(rows_ND) == len(pairs.order_N)
        grad_rows_ND = grad_ND[: len(rows_ND)].clone()
        grad_rows_ND[n_left:] = torch.nan
        (of_x_TD,) = torch.autograd.grad(rows_ND, x_TD, grad_rows_ND)
        made_ND = rows_ND.detach().clone()
        made_ND[n_left:] = torch.nan
        back_ND = from_rows(made_ND.requires_grad_(), pairs)
        (of_made_ND,) = torch.autograd.grad(back_ND, made_ND, grad_ND)
        results.append((rows_ND[:n_left], of_x_TD, back_ND, of_made_ND[:n_left]))
    for ours, theirs in zip(*results, strict=True):
        assert not ours.isnan().any()
        assert torch.equal(ours, theirs)
