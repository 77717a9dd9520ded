"""Every dispatcher gives what LocalDispatcher, with all experts on one rank, gives of the same tokens."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from harness.expert_trip import there_and_back
from harness.worker_pool import WorkerPool
from torch import Tensor

from models.config import ExpertBackend, MoEConfig
from models.dispatcher import Dispatcher, LocalDispatcher
from models.experts import RoutedExperts
from models.placement import ExpertPlacement
from models.router import Routing
from parallel.collective_functions import Among
from parallel.comm import Communicator
from parallel.comm_kind import CommKind
from parallel.expert_parallel.build import DispatcherName, RowRoom, build_dispatcher

T, D, F, E, K = 11, 8, 4, 10, 3
ON_CPU = (DispatcherName.all_to_all, DispatcherName.all_gather)
"""Of symmetric_memory see test_symmetric_memory.py."""


def tokens_of(rank: int, drop: bool) -> tuple[Tensor, Routing, Tensor]:
    """One rank's tokens [T, D], their routing, and the gradient [T, D] of what becomes of them."""
    generator = torch.Generator().manual_seed(100 + rank)
    # Rank 0 has no row for the last expert.
    choices = [torch.randperm(E - (rank == 0), generator=generator)[:K] for _ in range(T)]
    x_TD, probe_TD = (torch.randn(T, D, generator=generator, dtype=torch.float64) for _ in range(2))
    weights_TK = torch.rand(T, K, generator=generator, dtype=torch.float64)
    kept_TK = torch.rand(T, K, generator=generator) > 0.3 if drop else None
    return x_TD, Routing(torch.stack(choices), weights_TK, kept_TK=kept_TK), probe_TD


def experts(slots: tuple[int, ...]) -> RoutedExperts:
    """Experts by their logical numbers, wherever they lie."""
    module = RoutedExperts(MoEConfig(n_routed=E, expert_dim=F), D, 1, slots, ExpertBackend.loop).double()
    for name, parameter in module.named_parameters():
        for slot, expert in enumerate(slots):
            generator = torch.Generator().manual_seed(1000 * expert + len(name))
            shape = parameter.shape[1:]
            parameter.data[slot] = torch.randn(shape, generator=generator, dtype=torch.float64)
    return module


class Spoilt(torch.autograd.Function):
    """Rows past `end` as NaN, forward and back: what kernels leave there may be."""

    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor, end: int) -> Tensor:
        ctx.end = end
        return Spoilt.beyond(rows_ND, end)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None]:
        return Spoilt.beyond(grad_ND, ctx.end), None

    @staticmethod
    def beyond(rows_ND: Tensor, end: int) -> Tensor:
        rows_ND = rows_ND.clone()
        rows_ND[end:] = torch.nan
        return rows_ND


def spoil(module: RoutedExperts) -> None:
    """What it takes and gives past the last end, weights of rows too."""
    compute = module.compute

    def spoilt(
        rows_ND: Tensor, offsets_E: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, weights_N: Tensor | None
    ) -> Tensor:
        end = int(offsets_E[-1])
        rows_ND, weights_N = (
            Spoilt.apply(rows_ND, end),
            weights_N if weights_N is None else Spoilt.apply(weights_N, end),
        )
        return Spoilt.apply(compute(rows_ND, offsets_E, gate_up_E2FD, down_EDF, weights_N), end)

    module.compute = spoilt


def through(
    dispatcher: Dispatcher, module: RoutedExperts, x_TD: Tensor, routing: Routing, probe_TD: Tensor
) -> list[Tensor]:
    """Outputs, and the gradients of tokens and routing weights; the module's are in its parameters."""
    x_TD, weights_TK = x_TD.requires_grad_(), routing.weights_TK.requires_grad_()
    y_TD, counts_E = there_and_back(dispatcher, module, x_TD, routing)
    (y_TD * probe_TD).sum().backward()
    assert x_TD.grad is not None
    assert weights_TK.grad is not None
    return [y_TD.detach(), x_TD.grad, weights_TK.grad, counts_E]


def gradients(module: RoutedExperts) -> dict[tuple[str, int], np.ndarray]:
    """By parameter and logical expert."""
    return {
        (name, expert): parameter.grad[slot].numpy()
        for name, parameter in module.named_parameters()
        for slot, expert in enumerate(module.expert_of_slot)
        if parameter.grad is not None
    }


def over_ranks(
    name: DispatcherName, placement: ExpertPlacement, drop: bool, n_parts: int = 1, room: RowRoom = RowRoom.exact
) -> tuple[list, dict]:
    rank, comm = torch.distributed.get_rank(), Communicator()
    world = torch.distributed.group.WORLD
    assert world is not None
    dispatcher = build_dispatcher(name, placement, rank, Among(comm, world, CommKind.ep), None, n_parts, room=room)
    assert not isinstance(dispatcher, LocalDispatcher)
    module = experts(placement.slots_of_rank[rank])
    spoil(module)
    outcome = through(dispatcher, module, *tokens_of(rank, drop))
    assert comm.calls[CommKind.ep, name.value] > 0
    if name is DispatcherName.all_to_all:
        assert (
            comm.calls[CommKind.ep, name.value] == 1 + 4 * n_parts
        )  # counts; rows there and back, and their gradients
    else:
        assert comm.calls[CommKind.ep, name.value] == 3  # weights with choices, tokens, gradients of their sums
    return [tensor.numpy() for tensor in outcome], gradients(module)


def permuted(n_ranks: int, slots: list[int]) -> ExpertPlacement:
    """Experts in random order, `slots[r]` of them on rank r."""
    order = random.Random(n_ranks).sample(range(E), E)
    begins = [sum(slots[:rank]) for rank in range(n_ranks)]
    return ExpertPlacement(tuple(tuple(order[b : b + n]) for b, n in zip(begins, slots, strict=True)))


PLACEMENTS = {
    "round_robin": ExpertPlacement.round_robin(E, 2),
    "permuted": permuted(2, [5, 5]),
    "permuted_uneven": permuted(3, [2, 7, 1]),
    "permuted_4": permuted(4, [3, 1, 4, 2]),
}


@pytest.mark.parametrize("drop", [False, True], ids=["dropless", "drop"])
@pytest.mark.parametrize("name", ON_CPU, ids=lambda name: name.value)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_any_placement_equals_all_experts_on_one_rank(
    placement: str, name: DispatcherName, drop: bool, pool: WorkerPool
) -> None:
    equals_all_experts_on_one_rank(PLACEMENTS[placement], pool, name, drop)


@pytest.mark.parametrize("drop", [False, True], ids=["dropless", "drop"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_so_do_rows_with_room_for_all(placement: str, drop: bool, pool: WorkerPool) -> None:
    equals_all_experts_on_one_rank(PLACEMENTS[placement], pool, DispatcherName.all_gather, drop, room=RowRoom.static)


@pytest.mark.parametrize("drop", [False, True], ids=["dropless", "drop"])
@pytest.mark.parametrize("n_parts", [2, 3, 5])
@pytest.mark.parametrize("placement", ["round_robin", "permuted"])
def test_so_do_rows_that_travel_in_parts(placement: str, n_parts: int, drop: bool, pool: WorkerPool) -> None:
    """Five slots a rank: 2 and 3, or 1, 2 and 2, or each by itself."""
    equals_all_experts_on_one_rank(PLACEMENTS[placement], pool, DispatcherName.all_to_all, drop, n_parts)


def equals_all_experts_on_one_rank(
    table: ExpertPlacement,
    pool: WorkerPool,
    name: DispatcherName,
    drop: bool,
    n_parts: int = 1,
    room: RowRoom = RowRoom.exact,
) -> None:
    n_ranks = len(table.slots_of_rank)
    outcomes = pool.run(n_ranks, over_ranks, name, table, drop, n_parts, room)
    everything = experts(tuple(range(E)))
    local = LocalDispatcher(ExpertPlacement.contiguous(E))
    for rank, (got, _) in enumerate(outcomes):  # gradients of the experts add up over the ranks' tokens
        for ours, theirs in zip(got, through(local, everything, *tokens_of(rank, drop)), strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-13)
    expected = gradients(everything)
    found = [part for _, of_rank in outcomes for part in of_rank.items()]
    assert sorted(key for key, _ in found) == sorted(expected)
    for key, gradient in found:
        np.testing.assert_allclose(gradient, expected[key], rtol=0, atol=1e-13, err_msg=str(key))


def test_round_robin_spreads_a_group() -> None:
    """Eight experts in two groups of four neighbours: dealt out, each rank has one of each group."""
    assert ExpertPlacement.round_robin(8, 4).slots_of_rank == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert ExpertPlacement.contiguous(8, 4).slots_of_rank == ((0, 1), (2, 3), (4, 5), (6, 7))
    with pytest.raises(ValueError, match="8 experts do not divide over 3 ranks"):
        ExpertPlacement.round_robin(8, 3)
