"""Causal self-attention: grouped-query, and multi-head latent attention.

B batch, S sequence, D model width, H heads, G key-value heads, N nope width, R rope width, L latent width.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.config import AttentionConfig, AttentionKind, ModelConfig
from models.layers import Linear, RMSNorm
from models.positions import Positions
from models.rope import rotate
from models.yarn import score_factor

# Measured on one H200 at S=4096, forward and backward, TFLOP/s: cuDNN 445 (d128) and 404 (192/128, MLA); flash 271 and
# refuses 192/128. Elsewhere the list falls through to what runs: flash on CPU, math where widths differ there.
KERNELS_BY_SPEED = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


# Of the norms on MLA's latents, whatever the model's other norms have: DeepSeek's code never sets it.
LATENT_NORM_EPS = 1e-6


class Attention(nn.Module, ABC):
    """Cut where tokens meet: what is before and after that is done token by token, and may be done in any order."""

    output: Linear

    @abstractmethod
    def project(self, x_BSD: Tensor) -> tuple[Tensor, ...]:
        """What `attend` needs of each token, [B, S, …] each."""

    @abstractmethod
    def attend(self, projected: Sequence[Tensor], positions: Positions) -> Tensor:
        """What each token saw of its whole sequence, [B, S, H·d_v]."""

    def forward(self, x_BSD: Tensor, positions: Positions) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        y_BSD: Tensor = self.output(self.attend(self.project(x_BSD), positions))
        return y_BSD


class GroupedQueryAttention(Attention):
    """H query heads share G key-value heads (Ainslie et al. 2023)."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        a = model.attention
        self.config = a
        self.query = Linear(model.dim, a.n_heads * a.head_dim, bias=a.bias)
        self.key = Linear(model.dim, a.n_kv_heads * a.head_dim, bias=a.bias)
        self.value = Linear(model.dim, a.n_kv_heads * a.head_dim, bias=a.bias)
        self.query_norm = RMSNorm(a.head_dim, model.norm_eps) if a.qk_norm else nn.Identity()
        self.key_norm = RMSNorm(a.head_dim, model.norm_eps) if a.qk_norm else nn.Identity()
        self.output = Linear(a.n_heads * a.head_dim, model.dim, residual_depth=2 * model.n_layers)

    def project(self, x_BSD: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values."""
        return self.query(x_BSD), self.key(x_BSD), self.value(x_BSD)

    def attend(self, projected: Sequence[Tensor], positions: Positions) -> Tensor:
        """See Attention."""
        a = self.config
        queries, keys, values = projected
        table = positions.rotary
        q_BHSd = rotate(self.query_norm(_split_heads(queries, a.head_dim)), table)
        k_BGSd = rotate(self.key_norm(_split_heads(keys, a.head_dim)), table)
        v_BGSd = _split_heads(values, a.head_dim)
        return _attend(q_BHSd, k_BGSd, v_BGSd, positions.mask_B1SS, a)


class MultiHeadLatentAttention(Attention):
    """Keys and values are expanded from one latent per token; position rides on a decoupled part of the query and on
    one key shared by all heads (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        a = model.attention
        self.config = a
        if a.q_lora_rank:
            self.query_down = Linear(model.dim, a.q_lora_rank, bias=a.bias)
            self.query_norm = RMSNorm(a.q_lora_rank, LATENT_NORM_EPS)
            self.query_up = Linear(a.q_lora_rank, a.n_heads * a.qk_dim)
        else:
            self.query = Linear(model.dim, a.n_heads * a.qk_dim)
        self.kv_down = Linear(model.dim, a.kv_lora_rank + a.qk_rope_dim, bias=a.bias)
        self.kv_norm = RMSNorm(a.kv_lora_rank, LATENT_NORM_EPS)
        self.kv_up = Linear(a.kv_lora_rank, a.n_heads * (a.qk_nope_dim + a.v_dim))
        self.output = Linear(a.n_heads * a.v_dim, model.dim, residual_depth=2 * model.n_layers, bias=a.bias)

    def project(self, x_BSD: Tensor) -> tuple[Tensor, ...]:
        """Queries, the key that all heads share, and what keys and values are expanded to."""
        a = self.config
        queries = self.query_up(self.query_norm(self.query_down(x_BSD))) if a.q_lora_rank else self.query(x_BSD)
        latent_BSL, k_rope_BSR = self.kv_down(x_BSD).split([a.kv_lora_rank, a.qk_rope_dim], dim=-1)
        return queries, k_rope_BSR, self.kv_up(self.kv_norm(latent_BSL))

    def attend(self, projected: Sequence[Tensor], positions: Positions) -> Tensor:
        """See Attention."""
        a = self.config
        queries, k_rope_BSR, keys_and_values = projected
        table = positions.rotary
        q_nope, q_rope = _split_heads(queries, a.qk_dim).split([a.qk_nope_dim, a.qk_rope_dim], dim=-1)
        expanded = _split_heads(keys_and_values, a.qk_nope_dim + a.v_dim)
        k_nope, v_BHSd = expanded.split([a.qk_nope_dim, a.v_dim], dim=-1)
        k_rope = rotate(k_rope_BSR.unsqueeze(1), table).expand(-1, q_nope.shape[1], -1, -1)

        q_BHSd = torch.cat((q_nope, rotate(q_rope, table)), dim=-1)
        k_BHSd = torch.cat((k_nope, k_rope), dim=-1)
        return _attend(q_BHSd, k_BHSd, v_BHSd, positions.mask_B1SS, a)


def build_attention(model: ModelConfig) -> Attention:
    """The attention that `model.attention.kind` names: [B, S, D] and positions to [B, S, D]."""
    kinds = {AttentionKind.gqa: GroupedQueryAttention, AttentionKind.mla: MultiHeadLatentAttention}
    return kinds[model.attention.kind](model)


def _split_heads(x: Tensor, head_dim: int) -> Tensor:
    """[B, S, H·d] to [B, H, S, d]. The head count is inferred, so that a rank may hold some of the heads."""
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def _attend(
    q_BHSd: Tensor, k_BGSd: Tensor, v_BGSd: Tensor, mask_B1SS: Tensor | None, config: AttentionConfig
) -> Tensor:
    """Attend causally, or as the mask adds to the scores; [B, S, H·d_v] back."""
    grouped = q_BHSd.shape[1] != k_BGSd.shape[1]
    scale = config.qk_dim**-0.5 * score_factor(config.yarn)
    with sdpa_kernel(KERNELS_BY_SPEED, set_priority=True):
        y_BHSd = F.scaled_dot_product_attention(
            q_BHSd, k_BGSd, v_BGSd, attn_mask=mask_B1SS, is_causal=mask_B1SS is None, scale=scale, enable_gqa=grouped
        )
    return y_BHSd.transpose(1, 2).flatten(2)
