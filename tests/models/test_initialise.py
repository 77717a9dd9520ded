"""Same start everywhere: values depend on seed, name, logical expert and index, and on nothing else."""

import math
from dataclasses import replace

import torch

from models.config import AttentionConfig, ModelConfig
from models.dispatcher import LocalDispatcher
from models.initialise import Shard, initialise, tensor_key, truncated_normal
from models.placement import ExpertPlacement
from models.surroundings import Surroundings
from models.transformer import Transformer

MODEL = ModelConfig(dim=32, n_layers=2, vocab_size=64)


def build(seed: int = 0, expert_order: list[int] | None = None) -> Transformer:
    placement = ExpertPlacement.on_one_rank(expert_order or range(MODEL.moe.n_routed))
    with torch.device("meta"):
        model = Transformer(MODEL, torch.float64, Surroundings(LocalDispatcher(placement)))
    model.double().to_empty(device="cpu")
    initialise(model, seed)
    return model


def test_golden_values() -> None:
    """A change here changes every run's start."""
    values = truncated_normal(key=12345, index=torch.arange(4), std=1.0)
    torch.testing.assert_close(values, torch.tensor(GOLDEN, dtype=torch.float64), rtol=0, atol=1e-14)


GOLDEN = [1.6416023727085634, -1.1073548060359164, -0.8217360509121404, -1.172143417559001]


def test_normal_of_the_asked_deviation_cut_at_three_sigma() -> None:
    values = truncated_normal(key=7, index=torch.arange(200_000), std=2.0)
    assert values.abs().max() <= 6.0
    assert abs(values.mean().item()) < 0.02
    # A normal cut at ±3σ has variance 1 - 6·φ(3) / (1 - 2·Q(3)).
    expected = 2.0 * math.sqrt(1 - 6 * math.exp(-4.5) / math.sqrt(2 * math.pi) / math.erf(3 / math.sqrt(2)))
    assert abs(values.std().item() / expected - 1) < 0.01
    assert len(values.unique()) == len(values)


def test_a_shard_holds_its_part_of_the_whole() -> None:
    whole = build()
    again = build()

    def second_half(name: str, parameter: torch.Tensor) -> Shard:
        half = parameter.shape[0] // 2
        offset = (half,) + (0,) * (parameter.dim() - 1)
        return Shard(parameter[half:], tuple(parameter.shape), offset)

    for parameter in again.parameters():
        parameter.data.fill_(float("nan"))
    initialise(again, 0, second_half)
    for (name, parameter), other in zip(whole.named_parameters(), again.parameters(), strict=True):
        half = parameter.shape[0] // 2
        assert torch.equal(parameter[half:], other[half:]), name
        assert other[:half].isnan().all()


def test_tensors_experts_and_seeds_differ() -> None:
    model, other = build(), build(seed=1)
    experts = model.get_submodule("layers.1.experts.routed")
    gate_EFD, up_EFD = experts.gate_up_E2FD.unbind(1)
    assert not torch.equal(gate_EFD[0], gate_EFD[1])
    assert not torch.equal(gate_EFD, up_EFD)
    assert not torch.equal(model.head.weight, other.head.weight)


def test_gate_and_up_start_by_their_own_names() -> None:
    routed = build().get_submodule("layers.1.experts.routed")
    index_FD = torch.arange(routed.gate_up_E2FD[0, 0].numel()).view(routed.gate_up_E2FD[0, 0].shape)
    for matrix, name in enumerate(("gate_EFD", "up_EFD")):
        for expert in (0, 3):
            key = tensor_key(0, f"layers.1.experts.routed.{name}", expert)
            assert torch.equal(routed.gate_up_E2FD[expert, matrix], truncated_normal(key, index_FD, MODEL.dim**-0.5))


def test_biases_start_at_zero_and_norms_at_one() -> None:
    model = Transformer(replace(MODEL, attention=AttentionConfig(bias=True, qk_norm=True)), torch.float64)
    initialise(model, seed=0)
    vectors = {name: p for name, p in model.named_parameters() if p.dim() == 1}
    assert sum(name.endswith("bias") for name in vectors) == 3 * MODEL.n_layers
    for name, vector in vectors.items():
        assert vector.eq(0 if name.endswith("bias") else 1).all(), name


def test_placement_moves_experts_and_changes_nothing() -> None:
    tokens_BS = torch.randint(0, 64, (2, 17), generator=torch.Generator().manual_seed(0))
    outcomes = []
    for order in (None, [3, 1, 7, 0, 2, 6, 5, 4]):
        model = build(expert_order=order)
        loss = model(tokens_BS[:, :-1], tokens_BS[:, 1:]).cross_entropy_sum
        loss.backward()
        routed = model.get_submodule("layers.1.experts.routed")
        by_expert = {e: routed.down_EDF.grad[slot] for slot, e in enumerate(routed.expert_of_slot)}
        outcomes.append((loss, model.embedding.weight.grad, by_expert, model.take_routing().chosen_LE))
    (loss, gradient, experts, counts), (loss_2, gradient_2, experts_2, counts_2) = outcomes
    torch.testing.assert_close(loss, loss_2, rtol=1e-14, atol=0)
    torch.testing.assert_close(gradient, gradient_2, rtol=0, atol=1e-14)
    assert torch.equal(counts, counts_2)
    for expert, expected in experts.items():
        torch.testing.assert_close(experts_2[expert], expected, rtol=0, atol=1e-14)
