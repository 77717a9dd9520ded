"""The decoder-only transformer: embedding, blocks, norm, head.

B batch, S sequence, D model width, V vocabulary, L MoE layers, E experts.
"""

import torch
from torch import Tensor, nn

from models.block import Block, DispatchPart
from models.config import Balance, ModelConfig
from models.dispatcher import Dispatcher, LocalDispatcher
from models.layers import Embedding, Linear, RMSNorm
from models.placement import ExpertPlacement
from models.router import Router, update_expert_bias


class Transformer(nn.Module):
    """Token ids [B, S] to logits [B, S, V] in `compute_dtype`.

    Parameters are made empty, on the current default device: build on meta, lay out, then `initialise`.
    One `dispatcher` serves all MoE layers; without one, all experts are here. `layers` is a ModuleDict keyed by the
    layer's number, so that a model that holds some of the layers keeps their names.
    """

    def __init__(
        self, model: ModelConfig, compute_dtype: torch.dtype, dispatcher: Dispatcher | None = None, ep_rank: int = 0
    ) -> None:
        super().__init__()
        self.config = model
        dispatcher = dispatcher or LocalDispatcher(ExpertPlacement.contiguous(model.moe.n_routed))
        self.embedding = Embedding(model.vocab_size, model.dim, compute_dtype)
        self.layers = nn.ModuleDict(
            {
                str(i): Block(model, dispatcher if i >= model.n_dense_layers else None, ep_rank)
                for i in range(model.n_layers)
            }
        )
        self.norm = RMSNorm(model.dim, model.norm_eps)
        self.head = Linear(model.dim, model.vocab_size)

    def forward(self, tokens_BS: Tensor) -> Tensor:
        x_BSD = self.embedding(tokens_BS)
        for block in self.layers.values():
            x_BSD = block(x_BSD)
        return self.head(self.norm(x_BSD))

    def take_expert_counts(self) -> Tensor:
        """Tokens per logical expert since the last call, [L, E] int64, of this process' tokens; then start anew."""
        parts = [m for m in self.modules() if isinstance(m, DispatchPart) and m.dispatcher is not None]
        if not parts:
            return torch.zeros(0, self.config.moe.n_routed, dtype=torch.int64)
        counts_LE = torch.stack([part.counts_E for part in parts])
        for part in parts:
            part.reset_buffers()
        return counts_LE

    @torch.no_grad()
    def balance_experts(self, counts_LE: Tensor) -> None:
        """Move the routers' biases by the global batch's counts, once per optimizer step; nothing if balance=none."""
        routers = [m for m in self.modules() if isinstance(m, Router)]
        if self.config.moe.balance is not Balance.bias or not routers:
            return
        bias_LE = torch.stack([router.expert_bias_E for router in routers])
        for router, bias_E in zip(
            routers, update_expert_bias(bias_LE, counts_LE, self.config.moe.bias_update_rate), strict=True
        ):
            router.expert_bias_E.copy_(bias_E)
