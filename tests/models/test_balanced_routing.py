"""Experts dealt out: how many pairs each gets, in a sequence and in any part of it, and what still learns."""

from dataclasses import replace

import pytest
import torch

from models.balanced_routing import dealt_experts, even_length
from models.config import Balance, MoEConfig, RoutingChoice
from models.router import Router

BALANCED = MoEConfig(n_routed=6, top_k=4, routing=RoutingChoice.balanced, balance=Balance.none)


@pytest.mark.parametrize(("n_routed", "top_k"), [(8, 2), (6, 4), (7, 3), (5, 5), (64, 6), (1, 1)])
def test_loads_of_a_part_differ_by_one_at_most_and_of_a_sequence_not(n_routed: int, top_k: int) -> None:
    moe = replace(BALANCED, n_routed=n_routed, top_k=top_k)
    for places_S in (torch.arange(3, 14), torch.arange(3 * even_length(moe))):
        experts_BSK = dealt_experts(moe, 2, places_S)
        assert experts_BSK.shape == (2, len(places_S), top_k)
        loads_E = torch.bincount(experts_BSK[0].flatten(), minlength=n_routed)
        assert loads_E.max() - loads_E.min() <= (places_S[0] > 0)
        for experts_K in experts_BSK[1]:
            assert len(set(experts_K.tolist())) == top_k


def test_the_weights_are_by_score_and_the_gate_learns() -> None:
    torch.manual_seed(0)
    router = Router(BALANCED, dim=5).double()
    torch.nn.init.normal_(router.gate.weight)
    x_BSD = torch.randn(2, 9, 5, dtype=torch.float64)
    for _ in (router.train(), router.eval()):  # held-out losses are of the same routing
        routing = router(x_BSD)
        assert routing.experts_TK.tolist() == dealt_experts(BALANCED, 2, torch.arange(9)).flatten(0, 1).tolist()
    scores_TE = torch.sigmoid(x_BSD.flatten(0, 1) @ router.gate.weight.T)
    chosen_TK = scores_TE.gather(1, routing.experts_TK)
    torch.testing.assert_close(routing.weights_TK, chosen_TK / chosen_TK.sum(-1, keepdim=True))
    routing.weights_TK.square().sum().backward()
    assert router.gate.weight.grad is not None
    assert router.gate.weight.grad.abs().min() > 0
