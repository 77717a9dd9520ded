"""The decoder-only transformer: embedding, blocks, norm, head.

B batch, S sequence, D model width, V vocabulary, L MoE layers, E experts.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.attention import document_mask
from models.block import Block, DispatchPart
from models.config import Balance, ModelConfig
from models.head import Head
from models.layers import Embedding, RMSNorm
from models.router import Router, update_expert_bias
from models.surroundings import Surroundings


class LossTerms(NamedTuple):
    """What is minimised, before it is divided by the global numbers of targets and of tokens."""

    cross_entropy_sum: Tensor
    """Σ over targets of -log p, nats."""
    router_loss_sum: Tensor
    """Σ over tokens of what the routers add, weighted (models/router_loss.py); 0 if they add nothing."""


class ExpertCounts(NamedTuple):
    """(token, expert) pairs per logical expert of each MoE layer, int64."""

    chosen_LE: Tensor
    dropped_LE: Tensor
    """Those beyond the expert's capacity, of the chosen."""


class Transformer(nn.Module):
    """Token ids and targets [B, S] to the terms of their loss; activations are in `compute_dtype`.

    Parameters are made empty, on the current default device: build on meta, lay out, then `initialise`. `layers` is a
    ModuleDict keyed by the layer's number, so that a model that holds some of the layers keeps their names.
    """

    def __init__(self, model: ModelConfig, compute_dtype: torch.dtype, around: Surroundings | None = None) -> None:
        super().__init__()
        self.config = model
        around = around or Surroundings.alone(model.moe)
        self.embedding = Embedding(model.vocab_size, model.dim, compute_dtype)
        self.layers = nn.ModuleDict(
            {str(i): Block(model, around if i >= model.n_dense_layers else None) for i in range(model.n_layers)}
        )
        self.norm = RMSNorm(model.dim, model.norm_eps)
        self.head = Head(model.dim, model.vocab_size, model.loss_chunk_size)

    def forward(self, tokens_BS: Tensor, targets_BS: Tensor, documents_BS: Tensor | None = None) -> LossTerms:
        """Args:
        tokens_BS: ids.
        targets_BS: the id to predict at each place, or models.head.IGNORED.
        documents_BS: number of the document that each token is in: attention stays inside it. None: one document.
        """
        x_BSD, router_loss_sum = self._hidden(tokens_BS, documents_BS)
        return LossTerms(self.head(x_BSD, targets_BS), router_loss_sum)

    def logits(self, tokens_BS: Tensor, documents_BS: Tensor | None = None) -> Tensor:
        """[B, S, V]. For a model that one process holds: no hook of a parallel layout fires."""
        x_BSD, _ = self._hidden(tokens_BS, documents_BS)
        return self.head.logits(x_BSD)

    def _hidden(self, tokens_BS: Tensor, documents_BS: Tensor | None) -> tuple[Tensor, Tensor]:
        x_BSD = self.embedding(tokens_BS)
        mask_B1SS = document_mask(documents_BS, x_BSD.dtype) if documents_BS is not None else None
        router_losses = []
        for block in self.layers.values():
            x_BSD, router_loss_sum = block(x_BSD, mask_B1SS)
            if router_loss_sum is not None:
                router_losses.append(router_loss_sum)
        total = torch.stack(router_losses).sum() if router_losses else torch.zeros((), device=x_BSD.device)
        return self.norm(x_BSD), total

    def take_expert_counts(self) -> ExpertCounts:
        """The pairs of this process' tokens since the last call; then start anew."""
        parts = [m for m in self.modules() if isinstance(m, DispatchPart) and m.dispatcher is not None]
        if not parts:
            none_LE = torch.zeros(0, self.config.moe.n_routed, dtype=torch.int64)
            return ExpertCounts(none_LE, none_LE)
        counts = ExpertCounts(torch.stack([p.chosen_E for p in parts]), torch.stack([p.dropped_E for p in parts]))
        for part in parts:
            part.reset_buffers()
        return counts

    @torch.no_grad()
    def balance_experts(self, chosen_LE: Tensor) -> None:
        """Move the routers' biases by the global batch's counts, once per optimizer step; nothing if balance=none."""
        routers = [m for m in self.modules() if isinstance(m, Router)]
        if self.config.moe.balance is not Balance.bias or not routers:
            return
        bias_LE = torch.stack([router.expert_bias_E for router in routers])
        for router, bias_E in zip(
            routers, update_expert_bias(bias_LE, chosen_LE, self.config.moe.bias_update_rate), strict=True
        ):
            router.expert_bias_E.copy_(bias_E)
