"""Our tensors by their published names: the layout of DeepSeek-V2, -V3, GLM-4.5 and Qwen3 on the Hugging Face hub.

    layers.3.experts.routed.7.gate_FD          model.layers.3.mlp.experts.7.gate_proj.weight
    layers.3.attention.mixer.kv_down.weight    model.layers.3.self_attn.kv_a_proj_with_mqa.weight

Shapes are the same on both sides, and so are values, but for one thing: DeepSeek's rotary dimensions lie in
neighbouring pairs (x0, x1), (x2, x3), …, ours in two halves (x0, x2, …, x1, x3, …). The rows of the projections that
make them are permuted on the way; attention sees the same dot products.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from models.config import AttentionKind, ModelConfig
from models.hf_architecture import WITHOUT_BIAS, architecture_of

OUTSIDE_LAYERS = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
IN_LAYER = {
    "attention.norm": "input_layernorm",
    "attention.expert_norm": "post_attention_layernorm",
    "attention.router.gate": "mlp.gate",
}
IN_MIXER = {
    AttentionKind.gqa: {
        "query": "q_proj",
        "key": "k_proj",
        "value": "v_proj",
        "output": "o_proj",
        "query_norm": "q_norm",
        "key_norm": "k_norm",
    },
    AttentionKind.mla: {
        "query": "q_proj",
        "query_down": "q_a_proj",
        "query_norm": "q_a_layernorm",
        "query_up": "q_b_proj",
        "kv_down": "kv_a_proj_with_mqa",
        "kv_norm": "kv_a_layernorm",
        "kv_up": "kv_b_proj",
        "output": "o_proj",
    },
}
FEED_FORWARD = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
BIAS_NAME = "mlp.gate.e_score_correction_bias"


@dataclass(frozen=True)
class PublishedTensor:
    """Where a tensor of ours is in a published model."""

    name: str
    rows: Tensor | None
    """int64: row i of ours is row `rows[i]` of theirs; None for the same rows."""

    def to_theirs(self, ours: Tensor) -> Tensor:
        """The whole tensor with its rows in their order."""
        if self.rows is None:
            return ours
        theirs = torch.empty_like(ours)
        theirs[self.rows] = ours
        return theirs


class PublishedNames:
    """The published names of one model's tensors."""

    def __init__(self, model: ModelConfig, interleaved: bool) -> None:
        """`interleaved`: their rotary dimensions lie in neighbouring pairs (`hf_config.rope_interleaved`).

        Raises:
            ConfigError: if no architecture says `model`.
        """
        self._model = model
        self._has_bias = architecture_of(model) not in WITHOUT_BIAS
        a = model.attention
        self._rows: dict[str, Tensor] = {}
        if interleaved and a.kind is AttentionKind.mla:
            self._rows["query_up" if a.q_lora_rank else "query"] = rope_rows(a.n_heads, a.qk_nope_dim, a.qk_rope_dim)
            self._rows["kv_down"] = rope_rows(1, a.kv_lora_rank, a.qk_rope_dim)

    def find(self, name: str) -> PublishedTensor | None:
        """The counterpart of our tensor `name` (a logical name, without `model.`).

        None for the router's bias in an architecture that has none: it is zero there.

        Raises:
            KeyError: for a name that is not of this model.
        """
        if inside := re.fullmatch(r"layers\.(\d+)\.(.*)", name):
            layer, rest = int(inside[1]), inside[2]
            if rest == "attention.router.expert_bias_E":
                return PublishedTensor(f"model.layers.{layer}.{BIAS_NAME}", None) if self._has_bias else None
            return PublishedTensor(f"model.layers.{layer}.{self._in_layer(layer, rest)}", self._rows_of(rest))
        module, _, leaf = name.rpartition(".")
        return PublishedTensor(f"{OUTSIDE_LAYERS[module]}.{leaf}", None)

    def _in_layer(self, layer: int, rest: str) -> str:
        if routed := re.fullmatch(r"experts\.routed\.(\d+)\.(gate_FD|up_FD|down_DF)", rest):
            return f"mlp.experts.{routed[1]}.{FEED_FORWARD[routed[2].partition('_')[0]]}.weight"
        module, _, leaf = rest.rpartition(".")
        parent, _, part = module.rpartition(".")
        if parent == "attention.mixer":
            return f"self_attn.{IN_MIXER[self._model.attention.kind][part]}.{leaf}"
        if parent == "experts.shared":
            where = "mlp" if layer < self._model.n_dense_layers else "mlp.shared_experts"
            return f"{where}.{FEED_FORWARD[part]}.{leaf}"
        return f"{IN_LAYER[module]}.{leaf}"

    def _rows_of(self, rest: str) -> Tensor | None:
        parent, _, part = rest.rpartition(".")[0].rpartition(".")
        return self._rows.get(part) if parent == "attention.mixer" else None


def rope_rows(n_heads: int, before: int, rope_dim: int) -> Tensor:
    """For heads of `before` plain and then `rope_dim` rotary rows: which of their rows each of ours is, int64."""
    rotary = torch.arange(rope_dim).view(-1, 2).T.flatten()
    head = torch.cat((torch.arange(before), before + rotary))
    return (torch.arange(n_heads).unsqueeze(1) * len(head) + head).flatten()
