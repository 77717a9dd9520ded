"""The decoder-only transformer: embedding, blocks, norm, head.

B batch, S sequence, D model width, V vocabulary, L MoE layers, E experts.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.attention import document_mask
from models.block import Block
from models.config import Balance, ModelConfig
from models.head import Head
from models.layers import Embedding, RMSNorm
from models.router import update_expert_bias
from models.routing_totals import RoutingTotals
from models.surroundings import Surroundings


class Batch(NamedTuple):
    """A micro-batch, as `Transformer.forward` takes it."""

    tokens_BS: Tensor
    """Ids."""
    targets_BS: Tensor
    """The id to predict at each place, or models.head.IGNORED."""
    documents_BS: Tensor | None = None
    """Number of the document that each token is in: attention stays inside it. None: one document."""


class LossTerms(NamedTuple):
    """What is minimised, before it is divided by the global numbers of targets and of tokens."""

    cross_entropy_sum: Tensor
    """Σ over targets of -log p, nats."""
    router_loss_sum: Tensor
    """Σ over tokens of what the routers add, weighted (models/router_loss.py); 0 if they add nothing."""


class Hidden(NamedTuple):
    """What a stage hands to the next one."""

    x_BSD: Tensor
    router_loss_sum: Tensor
    """Of this stage's layers, as in LossTerms."""


class Transformer(nn.Module):
    """Token ids and targets [B, S] to the terms of their loss; activations are in `compute_dtype`.

    Parameters are made empty, on the current default device: build on meta, lay out, then `initialise`. `layers` is a
    ModuleDict keyed by the layer's number, so that a stage, which holds some of the layers, keeps their names: the
    first stage alone has the embedding, the last alone the norm and the head.
    """

    def __init__(
        self,
        model: ModelConfig,
        compute_dtype: torch.dtype,
        around: Surroundings | None = None,
        stage: range | None = None,
    ) -> None:
        super().__init__()
        self.config = model
        around = around or Surroundings.alone(model)
        self.placement = around.dispatcher.placement
        """Where the experts of all MoE layers live."""
        stage = range(model.n_layers) if stage is None else stage
        first, last = stage.start == 0, stage.stop == model.n_layers
        self.embedding = Embedding(model.vocab_size, model.dim, compute_dtype) if first else None
        self.layers = nn.ModuleDict(
            {str(i): Block(model, around if i >= model.n_dense_layers else None) for i in stage}
        )
        self.norm = RMSNorm(model.dim, model.norm_eps) if last else None
        self.head = Head(model.dim, model.vocab_size, model.loss_chunk_size) if last else None

    def forward(
        self, x: Tensor, targets_BS: Tensor | None = None, documents_BS: Tensor | None = None
    ) -> LossTerms | Hidden:
        """The loss of the last stage, or what the next stage takes.

        Args:
            x: ids [B, S] in the first stage, else the x_BSD of the one before.
            targets_BS: see Batch; the last stage needs them.
            documents_BS: see Batch.
        """
        x_BSD, router_loss_sum = self._hidden(x, documents_BS)
        if self.norm is None or self.head is None:
            return Hidden(x_BSD, router_loss_sum)
        assert targets_BS is not None, "the last stage computes the loss"
        return LossTerms(self.head(self.norm(x_BSD), targets_BS), router_loss_sum)

    def logits(self, tokens_BS: Tensor, documents_BS: Tensor | None = None) -> Tensor:
        """[B, S, V]. For a model that one process holds: no hook of a parallel layout fires."""
        assert self.norm is not None, "a stage has no logits"
        assert self.head is not None
        x_BSD, _ = self._hidden(tokens_BS, documents_BS)
        return self.head.logits(self.norm(x_BSD))

    def _hidden(self, x: Tensor, documents_BS: Tensor | None) -> tuple[Tensor, Tensor]:
        x_BSD = self.embedding(x) if self.embedding is not None else x
        mask_B1SS = document_mask(documents_BS, x_BSD.dtype) if documents_BS is not None else None
        router_losses = []
        for block in self.layers.values():
            x_BSD, router_loss_sum = block(x_BSD, mask_B1SS)
            if router_loss_sum is not None:
                router_losses.append(router_loss_sum)
        total = torch.stack(router_losses).sum() if router_losses else torch.zeros((), device=x_BSD.device)
        return x_BSD, total

    @torch.no_grad()
    def take_routing(self) -> RoutingTotals:
        """How this process' tokens were routed since the last call, then start anew. Of all MoE layers of the model: 0
        for those of other stages."""
        n_layers = self.config.n_layers - self.config.n_dense_layers
        totals = RoutingTotals.zeros(n_layers, self.config.moe.n_routed, next(self.parameters()).device)
        if not (here := list(self._expert_layers())):
            return totals
        of_stage = slice(here[0][0], here[-1][0] + 1)
        parts = [block.dispatch for _, block in here]
        totals.chosen_LE[of_stage] = torch.stack([part.chosen_E for part in parts])
        totals.dropped_LE[of_stage] = torch.stack([part.dropped_E for part in parts])
        if all(part.entropy_sum is not None for part in parts):
            totals.entropy_sum_L[of_stage] = torch.stack([part.entropy_sum for part in parts])
        bias_LE = torch.stack([block.attention.router.expert_bias_E for _, block in here])
        totals.bias_square_sum_L[of_stage] = bias_LE.double().square().sum(-1)
        totals.bias_holders_L[of_stage].fill_(1)  # assigned, a number would be copied from pageable memory: a wait
        for part in parts:
            part.reset_buffers()
        return totals

    @torch.no_grad()
    def balance_experts(self, chosen_LE: Tensor) -> None:
        """Move the routers' biases by the global batch's counts, once per optimizer step; nothing if balance=none."""
        routers = {layer: block.attention.router for layer, block in self._expert_layers()}
        if self.config.moe.balance is not Balance.bias or not routers:
            return
        bias_LE = torch.stack([router.expert_bias_E for router in routers.values()])
        chosen_LE = torch.stack([chosen_LE[layer] for layer in routers])
        moved_LE = update_expert_bias(bias_LE, chosen_LE, self.config.moe.bias_update_rate)
        for router, bias_E in zip(routers.values(), moved_LE, strict=True):
            router.expert_bias_E.copy_(bias_E)

    def _expert_layers(self) -> Iterator[tuple[int, Any]]:
        """The MoE layers that are here, each with its place among those of the whole model."""
        for number, block in self.layers.items():
            if int(number) >= self.config.n_dense_layers:
                yield int(number) - self.config.n_dense_layers, block
