"""Causal self-attention: grouped-query, and multi-head latent attention.

B batch, S sequence, D model width, H heads, G key-value heads, N nope width, R rope width, L latent width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.config import AttentionKind, ModelConfig
from models.layers import Linear, RMSNorm
from models.rope import RotaryTable, rotary_table, rotate

# Measured on one H200 at S=4096, forward and backward, TFLOP/s: cuDNN 445 (d128) and 404 (192/128, MLA); flash 271 and
# refuses 192/128. Elsewhere the list falls through to what runs: flash on CPU, math where widths differ there.
KERNELS_BY_SPEED = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


class GroupedQueryAttention(nn.Module):
    """H query heads share G key-value heads (Ainslie et al. 2023), RoPE on the whole head."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        a = model.attention
        self.config = a
        self.query = Linear(model.dim, a.n_heads * a.head_dim)
        self.key = Linear(model.dim, a.n_kv_heads * a.head_dim)
        self.value = Linear(model.dim, a.n_kv_heads * a.head_dim)
        self.output = Linear(a.n_heads * a.head_dim, model.dim, residual_depth=2 * model.n_layers)

    def forward(self, x_BSD: Tensor) -> Tensor:
        table = _table(x_BSD, self.config.head_dim, self.config.rope_theta)
        q_BHSd = rotate(_split_heads(self.query(x_BSD), self.config.head_dim), table)
        k_BGSd = rotate(_split_heads(self.key(x_BSD), self.config.head_dim), table)
        v_BGSd = _split_heads(self.value(x_BSD), self.config.head_dim)
        return self.output(_causal_attention(q_BHSd, k_BGSd, v_BGSd))


class MultiHeadLatentAttention(nn.Module):
    """Keys and values are expanded from one latent per token; position rides on a decoupled part of the query and on
    one key shared by all heads (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        a = model.attention
        self.config = a
        if a.q_lora_rank:
            self.query_down = Linear(model.dim, a.q_lora_rank)
            self.query_norm = RMSNorm(a.q_lora_rank, model.norm_eps)
            self.query_up = Linear(a.q_lora_rank, a.n_heads * a.qk_dim)
        else:
            self.query = Linear(model.dim, a.n_heads * a.qk_dim)
        self.kv_down = Linear(model.dim, a.kv_lora_rank + a.qk_rope_dim)
        self.kv_norm = RMSNorm(a.kv_lora_rank, model.norm_eps)
        self.kv_up = Linear(a.kv_lora_rank, a.n_heads * (a.qk_nope_dim + a.v_dim))
        self.output = Linear(a.n_heads * a.v_dim, model.dim, residual_depth=2 * model.n_layers)

    def forward(self, x_BSD: Tensor) -> Tensor:
        a = self.config
        table = _table(x_BSD, a.qk_rope_dim, a.rope_theta)
        queries = self.query_up(self.query_norm(self.query_down(x_BSD))) if a.q_lora_rank else self.query(x_BSD)
        q_nope, q_rope = _split_heads(queries, a.qk_dim).split([a.qk_nope_dim, a.qk_rope_dim], dim=-1)

        latent_BSL, k_rope_BSR = self.kv_down(x_BSD).split([a.kv_lora_rank, a.qk_rope_dim], dim=-1)
        expanded = _split_heads(self.kv_up(self.kv_norm(latent_BSL)), a.qk_nope_dim + a.v_dim)
        k_nope, v_BHSd = expanded.split([a.qk_nope_dim, a.v_dim], dim=-1)
        k_rope = rotate(k_rope_BSR.unsqueeze(1), table).expand(-1, a.n_heads, -1, -1)

        q_BHSd = torch.cat((q_nope, rotate(q_rope, table)), dim=-1)
        k_BHSd = torch.cat((k_nope, k_rope), dim=-1)
        return self.output(_causal_attention(q_BHSd, k_BHSd, v_BHSd))


def build_attention(model: ModelConfig) -> nn.Module:
    """The attention that `model.attention.kind` names: [B, S, D] to [B, S, D]."""
    kinds = {AttentionKind.gqa: GroupedQueryAttention, AttentionKind.mla: MultiHeadLatentAttention}
    return kinds[model.attention.kind](model)


def _table(x_BSD: Tensor, width: int, theta: float) -> RotaryTable:
    return rotary_table(x_BSD.shape[1], width, theta, x_BSD.dtype, x_BSD.device)


def _split_heads(x: Tensor, head_dim: int) -> Tensor:
    """[B, S, H·d] to [B, H, S, d]. The head count is inferred, so that a rank may hold some of the heads."""
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def _causal_attention(q_BHSd: Tensor, k_BGSd: Tensor, v_BGSd: Tensor) -> Tensor:
    """Attend causally; [B, S, H·d_v] back."""
    grouped = q_BHSd.shape[1] != k_BGSd.shape[1]
    with sdpa_kernel(KERNELS_BY_SPEED, set_priority=True):
        y_BHSd = F.scaled_dot_product_attention(q_BHSd, k_BGSd, v_BGSd, is_causal=True, enable_gqa=grouped)
    return y_BHSd.transpose(1, 2).flatten(2)
