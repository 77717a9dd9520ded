"""Capacity: what is dropped, counted by hand; and that dropped pairs leave no trace in outputs or gradients."""

import pytest
import torch
from harness.dense_experts import D, E, K, T, dense, experts
from harness.expert_trip import there_and_back

from models.capacity import expert_capacity, within_capacity
from models.config import ExpertBackend, ModelConfig, MoEConfig
from models.dispatcher import LocalDispatcher
from models.initialise import initialise
from models.placement import ExpertPlacement
from models.router import Routing
from models.transformer import Transformer

B, S = 3, 11


def test_capacity_is_a_multiple_of_the_even_share() -> None:
    assert expert_capacity(1.0, sequence_length=8, top_k=2, n_experts=4) == 4
    assert expert_capacity(1.25, sequence_length=9, top_k=2, n_experts=4) == 6
    assert expert_capacity(1.1, sequence_length=100, top_k=2, n_experts=10) == 22
    assert expert_capacity(1e30, sequence_length=8, top_k=2, n_experts=4) == 8  # and no overflow
    assert expert_capacity(0.01, sequence_length=8, top_k=1, n_experts=64) == 1


@pytest.mark.parametrize("capacity", [1, 3, 100])
def test_the_first_of_each_sequence_are_kept(capacity: int) -> None:
    experts_BSK = torch.randint(0, E, (B, S, K), generator=torch.Generator().manual_seed(0))
    kept_BSK = within_capacity(experts_BSK, E, capacity)
    for b in range(B):
        taken = dict.fromkeys(range(E), 0)
        for s in range(S):
            for k in range(K):
                expert = int(experts_BSK[b, s, k])
                taken[expert] += 1
                assert kept_BSK[b, s, k] == (taken[expert] <= capacity)


@pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"), [("loop", "float64", 1e-12), ("grouped_mm", "float32", 1e-4)]
)
@pytest.mark.parametrize("dropped", ["some", "all_of_an_expert", "all_but_one"])
@pytest.mark.parametrize("room_for_all", [False, True])
def test_a_dropped_pair_is_one_of_weight_zero(
    backend: str, dtype: str, tolerance: float, dropped: str, room_for_all: bool
) -> None:
    slots = (4, 2, 0, 3, 1)
    generator = torch.Generator().manual_seed(5)
    experts_TK = torch.stack([torch.randperm(E, generator=generator)[:K] for _ in range(T)])
    kept_TK = {
        "some": torch.rand(T, K, generator=generator) < 0.6,
        "all_of_an_expert": experts_TK != 2,
        "all_but_one": torch.arange(T * K).view(T, K) == 7,
    }[dropped]
    weights_TK = torch.rand(T, K, generator=generator, dtype=torch.float64)
    module = experts(ExpertBackend(backend), getattr(torch, dtype), slots)
    dispatcher = LocalDispatcher(ExpertPlacement.on_one_rank(slots), room_for_all=room_for_all)
    x_TD = torch.randn(T, D, generator=generator, dtype=torch.float64).to(getattr(torch, dtype)).requires_grad_()
    route = Routing(experts_TK, weights_TK.clone().requires_grad_(), kept_TK)
    y_TD, counts_E = there_and_back(dispatcher, module, x_TD, route)
    (part,) = dispatcher.leaving(x_TD, route).parts
    assert part.ticket.offsets_E[-1] == kept_TK.sum()  # what is dropped is not computed
    assert len(part.rows_ND) == (T * K if room_for_all else kept_TK.sum())
    assert torch.equal(counts_E, torch.bincount(experts_TK[kept_TK], minlength=E))

    wide = experts(ExpertBackend.loop, torch.float64, slots)
    x_wide = x_TD.detach().double().requires_grad_()
    expected_TD = dense(x_wide, wide, Routing(experts_TK, weights_TK * kept_TK))
    torch.testing.assert_close(y_TD.double(), expected_TD, rtol=0, atol=tolerance * expected_TD.abs().max().item())
    probe_TD = torch.randn(T, D, generator=generator, dtype=torch.float64)
    got = torch.autograd.grad((y_TD.double() * probe_TD).sum(), [x_TD, *module.parameters()])
    wanted = torch.autograd.grad((expected_TD * probe_TD).sum(), [x_wide, *wide.parameters()])
    for gradient, expected in zip(got, wanted, strict=True):
        torch.testing.assert_close(
            gradient.double(), expected, rtol=0, atol=tolerance * max(expected.abs().max().item(), 1)
        )


def test_a_model_counts_what_it_drops() -> None:
    moe = MoEConfig(n_routed=4, top_k=2, expert_dim=8, capacity_factor=0.5)
    model = Transformer(ModelConfig(dim=16, n_layers=3, vocab_size=32, dense_dim=16, moe=moe), torch.float64).double()
    initialise(model, seed=0)
    tokens_BS = torch.randint(0, 32, (2, 12), generator=torch.Generator().manual_seed(0))
    model(tokens_BS, tokens_BS).cross_entropy_sum.backward()
    chosen_LE, dropped_LE, *_ = model.take_routing()
    assert chosen_LE.sum(-1).tolist() == [2 * 12 * 2] * 2
    # Half of the even share fits: capacity 3 of each of two sequences.
    kept_LE = chosen_LE - dropped_LE
    assert kept_LE.max() <= 2 * 3
    assert (dropped_LE.sum(-1) >= 24).all()
    assert model.take_routing().dropped_LE.sum() == 0


def test_what_is_dropped_does_not_depend_on_the_other_sequences() -> None:
    moe = MoEConfig(n_routed=4, top_k=2, expert_dim=8, capacity_factor=0.6)
    model = Transformer(ModelConfig(dim=16, n_layers=2, vocab_size=32, dense_dim=16, moe=moe), torch.float64).double()
    initialise(model, seed=0)
    tokens_BS = torch.randint(0, 32, (3, 12), generator=torch.Generator().manual_seed(0))
    together = model.logits(tokens_BS)
    for b in range(3):
        torch.testing.assert_close(model.logits(tokens_BS[b : b + 1])[0], together[b], rtol=0, atol=1e-13)
