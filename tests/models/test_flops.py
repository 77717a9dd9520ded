"""Closed forms against what the built network is and does."""

import pytest
import torch
from torch.nn.attention import SDPBackend
from torch.utils.flop_counter import FlopCounterMode

import models.attention
from models.config import AttentionConfig, AttentionKind, ExpertBackend, ModelConfig, MoEConfig
from models.flops import count_parameters, flops_by_category, flops_per_token, routed_parameters
from models.initialise import initialise
from models.parameter_shapes import parameter_shapes
from models.transformer import Transformer

MODELS = {
    "gqa": ModelConfig(dim=48, attention=AttentionConfig(n_heads=4, n_kv_heads=2, head_dim=16)),
    "mla": ModelConfig(dim=48, attention=AttentionConfig(kind=AttentionKind.mla, v_dim=24)),
    "mla_q_lora": ModelConfig(dim=48, attention=AttentionConfig(kind=AttentionKind.mla, q_lora_rank=20)),
    "gqa_options": ModelConfig(
        dim=48, attention=AttentionConfig(n_heads=4, n_kv_heads=2, head_dim=16, qk_norm=True, bias=True)
    ),
    "mla_bias": ModelConfig(
        dim=48, attention=AttentionConfig(kind=AttentionKind.mla, q_lora_rank=20, bias=True), loss_chunk_size=10
    ),
    "all_dense": ModelConfig(n_layers=2, n_dense_layers=2),
    "no_shared": ModelConfig(n_dense_layers=0, moe=MoEConfig(n_routed=5, top_k=3, n_shared=0)),
}


@pytest.mark.parametrize("name", MODELS)
def test_parameter_count_is_exact(name: str) -> None:
    model = MODELS[name]
    with torch.device("meta"):
        built = Transformer(model, torch.float32)
    assert count_parameters(model).total == sum(p.numel() for p in built.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_named_in_order_with_its_shape(name: str) -> None:
    model = MODELS[name]
    for layers in (None, range(0, 1), range(1, model.n_layers)):
        with torch.device("meta"):
            built = Transformer(model, torch.float32, stage=layers)
        of_network = [(name, tuple(parameter.shape)) for name, parameter in built.named_parameters()]
        assert list(parameter_shapes(model, layers).items()) == of_network


@pytest.mark.parametrize("name", MODELS)
def test_flops_are_what_the_counter_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter sees fused attention and grouped_mm as nothing on CPU: hence math attention and the loop."""
    monkeypatch.setattr(models.attention, "KERNELS_BY_SPEED", [SDPBackend.MATH])
    model = MODELS[name]
    model = ModelConfig(**{**vars(model), "expert_backend": ExpertBackend.loop})
    with torch.device("meta"):
        built = Transformer(model, torch.float32)
    built.to_empty(device="cpu")
    initialise(built, seed=0)
    tokens_BS = torch.randint(0, model.vocab_size, (2, 33))
    with FlopCounterMode(display=False) as counter:
        built(tokens_BS[:, :-1], tokens_BS[:, 1:]).cross_entropy_sum.backward()
    counted = counter.get_total_flops() / (2 * 32)
    # Nothing else is a product: experts weigh their rows one by one.
    assert counted == pytest.approx(flops_per_token(model, 32, causal=False), rel=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_categories_are_what_the_counter_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each category by its own modules: what the routed experts multiply, what attention does, and the rest."""
    monkeypatch.setattr(models.attention, "KERNELS_BY_SPEED", [SDPBackend.MATH])
    model = ModelConfig(**{**vars(MODELS[name]), "expert_backend": ExpertBackend.loop})
    categories = flops_by_category(model, 32, causal=False)
    assert sum(categories.values()) == flops_per_token(model, 32, causal=False)
    assert sum(flops_by_category(model, 32).values()) == flops_per_token(model, 32)
    with torch.device("meta"):
        built = Transformer(model, torch.float32)
    built.to_empty(device="cpu")
    initialise(built, seed=0)
    with FlopCounterMode(display=False) as counter:
        tokens_BS = torch.randint(0, model.vocab_size, (2, 33))
        built(tokens_BS[:, :-1], tokens_BS[:, 1:]).cross_entropy_sum.backward()
    counts = counter.get_flop_counts()
    routed = sum(sum(of.values()) for module, of in counts.items() if module.endswith(".routed")) / 64
    products = sum(of.get(torch.ops.aten.bmm, 0) for module, of in counts.items() if module.endswith(".mixer")) / 64
    assert categories["expert_gemm"] == pytest.approx(routed, rel=1e-9)
    assert categories["attention"] == pytest.approx(products, rel=1e-9)
    total = sum(parameter.numel() for parameter in built.parameters())
    experts = sum(p.numel() for name, p in built.named_parameters() if ".routed." in name)
    assert (routed_parameters(model), count_parameters(model).total) == (experts, total)


def test_the_benchmark_model_is_what_the_design_says() -> None:
    model = ModelConfig(
        vocab_size=32768,
        dim=2048,
        n_layers=9,
        n_dense_layers=1,
        dense_dim=10944,
        max_sequence_length=4096,
        attention=AttentionConfig(
            kind=AttentionKind.mla, n_heads=16, kv_lora_rank=512, qk_nope_dim=128, qk_rope_dim=64, v_dim=128
        ),
        moe=MoEConfig(n_routed=64, top_k=6, n_shared=2, expert_dim=1408),
    )
    count = count_parameters(model)
    assert round(count.total / 1e9, 2) == 4.89
    assert round(count.active / 1e6) == 813
    assert round(flops_per_token(model, 4096) / 1e9, 2) == 5.44
