"""Balancing losses and z-loss against their papers' formulas, token by token; and choices limited to groups."""

import math

import pytest
import torch

from models.config import GroupScore, MoEConfig, ScoreFunction
from models.router import Router

B, S, D, E, K = 2, 6, 10, 8, 2


def router(**options: object) -> Router:
    module = Router(MoEConfig(n_routed=E, top_k=K, **options), D).double()  # type: ignore[arg-type]
    module.gate.weight.data = torch.randn(E, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    module.expert_bias_E = torch.linspace(-0.2, 0.2, E, dtype=torch.float64)
    return module


def samples() -> torch.Tensor:
    return torch.randn(B, S, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def mean_shares(module: Router, x_SD: torch.Tensor) -> list[float]:
    """P_e: the mean over tokens of each expert's share of the scores."""
    logits_SE = x_SD @ module.gate.weight.T
    scores_SE = logits_SE.softmax(-1) if module.config.score is ScoreFunction.softmax else logits_SE.sigmoid()
    return (scores_SE / scores_SE.sum(-1, keepdim=True)).mean(0).tolist()


def loads(experts_NK: torch.Tensor) -> list[float]:
    """f_e: E / (K·T) x how often it was chosen."""
    return [E * (experts_NK == e).sum().item() / experts_NK.numel() for e in range(E)]


@pytest.mark.parametrize("score", list(ScoreFunction))
def test_sequence_loss(score: ScoreFunction) -> None:
    """Over the experts of the best scores, which bias and groups keep the tokens from."""
    module = router(score=score, sequence_loss_weight=0.3, n_groups=4, groups_per_token=2)
    module.expert_bias_E *= 10
    x_BSD = samples()
    routing = module(x_BSD)
    best_BSK = (x_BSD @ module.gate.weight.T).topk(K, dim=-1).indices  # both scorings keep the logits' order
    chosen, best = routing.experts_TK.sort().values, best_BSK.flatten(0, 1).sort().values
    assert not torch.equal(chosen, best)
    expected = 0.0
    for b in range(B):
        pairs = zip(loads(best_BSK[b]), mean_shares(module, x_BSD[b]), strict=True)
        expected += S * 0.3 * sum(f * p for f, p in pairs)  # a mean over the sequence, as a sum over its tokens
    assert routing.loss_sum.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("score", list(ScoreFunction))
def test_batch_loss(score: ScoreFunction) -> None:
    module, x_BSD = router(score=score, batch_loss_weight=0.3), samples()
    routing = module(x_BSD)
    pairs = zip(loads(routing.experts_TK), mean_shares(module, x_BSD.flatten(0, 1)), strict=True)
    assert routing.loss_sum.item() == pytest.approx(B * S * 0.3 * sum(f * p for f, p in pairs), rel=1e-12)


def test_z_loss_and_the_sum_of_all() -> None:
    x_BSD = samples()
    module = router(z_loss_weight=0.1)
    logits = (x_BSD.flatten(0, 1) @ module.gate.weight.T).tolist()
    expected = 0.1 * sum(math.log(sum(math.exp(z) for z in token)) ** 2 for token in logits)
    assert module(x_BSD).loss_sum.item() == pytest.approx(expected, rel=1e-12)
    weights = {"sequence_loss_weight": 0.3, "batch_loss_weight": 0.2, "z_loss_weight": 0.1}
    apart = sum(router(**{name: weight})(x_BSD).loss_sum.item() for name, weight in weights.items())
    assert router(**weights)(x_BSD).loss_sum.item() == pytest.approx(apart, rel=1e-12)


def test_gradient_pushes_scores_down_where_the_load_is() -> None:
    module, x_BSD = router(score=ScoreFunction.softmax, sequence_loss_weight=1.0), samples()
    before = module(x_BSD).loss_sum
    before.backward()
    module.gate.weight.data -= 1e-4 * module.gate.weight.grad
    assert module(x_BSD).loss_sum < before


def test_no_loss_outside_training_or_without_weight() -> None:
    assert router()(samples()).loss_sum is None
    module = router(z_loss_weight=0.1)
    module.eval()
    assert module(samples()).loss_sum is None


@pytest.mark.parametrize("score", list(ScoreFunction))
@pytest.mark.parametrize("group_score", list(GroupScore))
@pytest.mark.parametrize("groups_per_token", [1, 2, 4])
def test_groups_limit_the_choice(score: ScoreFunction, group_score: GroupScore, groups_per_token: int) -> None:
    module = router(score=score, n_groups=4, groups_per_token=groups_per_token, group_score=group_score)
    x_BSD = samples()
    routing = module(x_BSD)
    for t, x_D in enumerate(x_BSD.flatten(0, 1)):
        logits_E = module.gate.weight @ x_D
        scores_E = logits_E.softmax(-1) if score is ScoreFunction.softmax else logits_E.sigmoid()
        preference = (scores_E + module.expert_bias_E).tolist()
        groups = [preference[2 * g : 2 * g + 2] for g in range(4)]
        rank = sum if group_score is GroupScore.two_best else max
        open_groups = sorted(range(4), key=lambda g: -rank(groups[g]))[:groups_per_token]
        allowed = [e for e in range(E) if e // 2 in open_groups]
        best = sorted(allowed, key=lambda e: -preference[e])[:K]
        assert routing.experts_TK[t].tolist() == best
        weights = scores_E[best] / scores_E[best].sum()
        torch.testing.assert_close(routing.weights_TK[t], weights)
