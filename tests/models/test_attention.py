"""Attention, rotation and norm against the formulas written out: position by position, RoPE as complex numbers."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.attention import GroupedQueryAttention, MultiHeadLatentAttention, build_attention
from models.config import AttentionConfig, AttentionKind, ModelConfig
from models.feed_forward import FeedForward
from models.initialise import initialise
from models.layers import Linear, RMSNorm
from models.positions import Positions
from models.transformer import Transformer

B, S, D = 2, 7, 24
GQA = ModelConfig(dim=D, attention=AttentionConfig(n_heads=6, n_kv_heads=2, head_dim=8, rope_theta=100.0))
MLA = ModelConfig(
    dim=D,
    attention=AttentionConfig(
        kind=AttentionKind.mla, n_heads=3, kv_lora_rank=10, qk_nope_dim=6, qk_rope_dim=4, v_dim=5, rope_theta=100.0
    ),
)
MLA_Q = ModelConfig(
    dim=D,
    attention=AttentionConfig(
        kind=AttentionKind.mla, n_heads=3, q_lora_rank=9, kv_lora_rank=10, qk_nope_dim=6, qk_rope_dim=4, v_dim=5
    ),
)
GQA_OPTIONS = replace(GQA, attention=replace(GQA.attention, rope_fraction=0.5, qk_norm=True, bias=True))
MLA_OPTIONS = replace(MLA_Q, attention=replace(MLA_Q.attention, bias=True))
MODELS = {"gqa": GQA, "mla": MLA, "mla_q_lora": MLA_Q, "gqa_options": GQA_OPTIONS, "mla_bias": MLA_OPTIONS}
DOCUMENTS_BS = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 2]])


def turned(x: Tensor, position: int, theta: float, width: int | None = None) -> Tensor:
    """One vector at one position: pair (i, i + d/2) of its first `width` as a complex number, times e^(i·angle)."""
    width = width or len(x)
    half = width // 2
    pairs = torch.complex(x[:half], x[half:width])
    angles = torch.tensor([position * theta ** (-2 * i / width) for i in range(half)], dtype=torch.float64)
    rotated = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((rotated.real, rotated.imag, x[width:]))


def normed(x: Tensor, norm: RMSNorm) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight


def projected(x: Tensor, layer: Linear) -> Tensor:
    return x @ layer.weight.T + (layer.bias if layer.bias is not None else 0)


def attend(queries: list[Tensor], keys: list[Tensor], values: list[Tensor], documents: list[int]) -> list[Tensor]:
    """One head: each position over itself and what came before in its document."""
    outputs = []
    for s, query in enumerate(queries):
        seen = [t for t in range(s + 1) if documents[t] == documents[s]]
        scores = torch.stack([query @ keys[t] for t in seen]) / math.sqrt(len(query))
        outputs.append((scores.softmax(0).unsqueeze(1) * torch.stack([values[t] for t in seen])).sum(0))
    return outputs


def by_hand_gqa(module: GroupedQueryAttention, x_SD: Tensor, documents: list[int]) -> Tensor:
    a, theta = module.config, module.config.rope_theta
    q, k, v = (projected(x_SD, layer) for layer in (module.query, module.key, module.value))
    if a.qk_norm:
        q = torch.cat([normed(head, module.query_norm) for head in q.split(a.head_dim, -1)], -1)
        k = torch.cat([normed(head, module.key_norm) for head in k.split(a.head_dim, -1)], -1)
    heads = []
    for h in range(a.n_heads):
        g = h // (a.n_heads // a.n_kv_heads)
        here, shared = slice(h * a.head_dim, (h + 1) * a.head_dim), slice(g * a.head_dim, (g + 1) * a.head_dim)
        queries = [turned(q[s, here], s, theta, a.rope_dim) for s in range(len(x_SD))]
        keys = [turned(k[s, shared], s, theta, a.rope_dim) for s in range(len(x_SD))]
        heads.append(torch.stack(attend(queries, keys, list(v[:, shared]), documents)))
    return projected(torch.cat(heads, dim=-1), module.output)


def by_hand_mla(module: MultiHeadLatentAttention, x_SD: Tensor, documents: list[int]) -> Tensor:
    a, theta = module.config, module.config.rope_theta
    if a.q_lora_rank:
        q = projected(normed(projected(x_SD, module.query_down), module.query_norm), module.query_up)
    else:
        q = projected(x_SD, module.query)
    down = projected(x_SD, module.kv_down)
    latent, k_rope = down[:, : a.kv_lora_rank], down[:, a.kv_lora_rank :]
    up = normed(latent, module.kv_norm) @ module.kv_up.weight.T
    heads = []
    for h in range(a.n_heads):
        q_h = q[:, h * a.qk_dim : (h + 1) * a.qk_dim]
        kv_h = up[:, h * (a.qk_nope_dim + a.v_dim) : (h + 1) * (a.qk_nope_dim + a.v_dim)]
        queries, keys = [], []
        for s in range(len(x_SD)):
            queries.append(torch.cat((q_h[s, : a.qk_nope_dim], turned(q_h[s, a.qk_nope_dim :], s, theta))))
            keys.append(torch.cat((kv_h[s, : a.qk_nope_dim], turned(k_rope[s], s, theta))))
        heads.append(torch.stack(attend(queries, keys, list(kv_h[:, a.qk_nope_dim :]), documents)))
    return projected(torch.cat(heads, dim=-1), module.output)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_attention_is_the_formula(name: str, documents: bool) -> None:
    module = build_attention(MODELS[name]).double()
    initialise(module, seed=3)
    for parameter in module.parameters():
        if parameter.dim() == 1:  # norms, which start at 1, and biases, which start at 0
            parameter.data += torch.linspace(0, 1, len(parameter), dtype=torch.float64)
    x_BSD = torch.randn(B, S, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    by_hand = by_hand_gqa if isinstance(module, GroupedQueryAttention) else by_hand_mla
    documents_BS = DOCUMENTS_BS if documents else torch.zeros(B, S)
    of_each = zip(x_BSD, documents_BS.tolist(), strict=True)
    expected = torch.stack([by_hand(module, x_SD, of_it) for x_SD, of_it in of_each])  # type: ignore[arg-type]
    positions = Positions.of(
        DOCUMENTS_BS if documents else None, S, MODELS[name].attention, torch.float64, x_BSD.device
    )
    torch.testing.assert_close(module(x_BSD, positions), expected, rtol=0, atol=1e-13)


def test_norm_and_feed_forward_are_their_formulas() -> None:
    x = torch.randn(5, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    norm = RMSNorm(D, eps=1e-2).double()
    norm.weight.data = torch.linspace(-1, 2, D, dtype=torch.float64)
    torch.testing.assert_close(norm(x), normed(x, norm), rtol=0, atol=1e-14)

    network = FeedForward(D, 11, residual_depth=1).double()
    initialise(network, seed=0)
    gate, up, down = (layer.weight for layer in (network.gate, network.up, network.down))
    hidden = (x @ gate.T) / (1 + torch.exp(-(x @ gate.T))) * (x @ up.T)
    torch.testing.assert_close(network(x), hidden @ down.T, rtol=0, atol=1e-13)


@pytest.mark.parametrize("model", [GQA, MLA], ids=["gqa", "mla"])
def test_the_past_does_not_see_the_future(model: ModelConfig) -> None:
    network = Transformer(model, torch.float64).double()
    initialise(network, seed=0)
    tokens_BS = torch.randint(0, 256, (1, S), generator=torch.Generator().manual_seed(0))
    changed_BS = tokens_BS.clone()
    changed_BS[0, 4] += 1
    before, after = network.logits(tokens_BS), network.logits(changed_BS)
    torch.testing.assert_close(before[:, :4], after[:, :4], rtol=0, atol=1e-13)
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_evaluation_does_not_count_tokens() -> None:
    network = Transformer(GQA, torch.float64).double()
    initialise(network, seed=0)
    tokens_BS = torch.zeros(1, S, dtype=torch.int64)
    network.eval()
    network(tokens_BS, tokens_BS)
    assert network.take_routing().chosen_LE.sum() == 0
    network.train()
    network(tokens_BS, tokens_BS)
    n_moe_layers = GQA.n_layers - GQA.n_dense_layers
    assert network.take_routing().chosen_LE.sum() == S * GQA.moe.top_k * n_moe_layers
    assert network.take_routing().chosen_LE.sum() == 0
