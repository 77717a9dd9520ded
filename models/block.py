"""A transformer block, cut where rows travel to experts:

    attention  ->  dispatch  ->  experts  ->  combine

    attention   norm, attention, residual, norm, route      weights
    dispatch    rows off to the ranks of their experts      no weights
    experts     routed and shared experts, rows off back    weights
    combine     rows back, their sum by weight, residual    no weights

Rows are on their way between these. Either each part waits for what it has sent off, and all of it is exposed; or
shared experts, and rows of other slots (models/dispatcher.py), are computed meanwhile:

    comm      rows to experts ───→          rows back ─────────→
    compute   shared: gate, up     routed   shared: down          weighted sum

Four modules with explicit inputs and outputs: whoever hides communication re-orders these four calls (two
micro-batches', say) and needs no other model. They are modules, not methods, so that the hooks of FSDP2 fire whichever
way they are called. A dense block has the same four: its dispatch is empty, its feed-forward stands where the shared
experts do.

B batch, S sequence, T = B·S tokens, D model width, N rows, E experts.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.attention import build_attention
from models.config import ModelConfig
from models.dispatcher import Dispatcher, Travelling, settle
from models.experts import RoutedExperts
from models.feed_forward import FeedForward
from models.layers import RMSNorm
from models.permutation import count_pairs
from models.positions import Positions
from models.router import Router, Routing
from models.surroundings import Surroundings


class Attended(NamedTuple):
    """What attention hands on."""

    residual_BSD: Tensor
    normed_BSD: Tensor
    routing: Routing | None
    """None in a dense block."""


class Departed(NamedTuple):
    """Rows on their way to experts."""

    travelling: tuple[Travelling, ...]
    """In parts."""
    tickets: tuple[Any, ...]
    """Of each part."""
    ticket: Any
    """Of all, see models/dispatcher.py."""


class ExpertOutput(NamedTuple):
    """What the experts computed: the shared ones per token; the routed ones per row, on their way back in parts."""

    shared_BSD: Tensor | None
    """None where there are none."""
    travelling: tuple[Travelling, ...]
    """Empty where there are none."""


class AttentionPart(nn.Module):
    """norm → attention → residual → norm → route."""

    def __init__(self, model: ModelConfig, around: Surroundings | None) -> None:
        super().__init__()
        self.norm = RMSNorm(model.dim, model.norm_eps)
        self.mixer = build_attention(model)
        self.expert_norm = RMSNorm(model.dim, model.norm_eps)
        self.router = Router(model.moe, model.dim, around.sum_over_data_ranks, around.sequence) if around else None

    def forward(self, x_BSD: Tensor, positions: Positions) -> Attended:
        residual_BSD = x_BSD + self.mixer(self.norm(x_BSD), positions)
        normed_BSD = self.expert_norm(residual_BSD)
        routing = self.router(normed_BSD) if self.router is not None else None
        return Attended(residual_BSD, normed_BSD, routing)


class DispatchPart(nn.Module):
    """Sends rows off to experts, and counts them: here, outside whatever is recomputed, each pair is counted once, and
    the router's entropy too."""

    chosen_E: Tensor
    dropped_E: Tensor

    def __init__(self, model: ModelConfig, around: Surroundings | None) -> None:
        super().__init__()
        self.dispatcher = around.dispatcher if around else None
        self.hidden = around is not None and (around.hide_behind_shared or around.hide_behind_others)
        self.entropy_sum: Tensor | None = None
        """Σ over tokens since the last reset, float64; None before the first token. No buffer: libraries cast those."""
        if around is not None:
            for name in ("chosen_E", "dropped_E"):
                counts_E = torch.zeros(model.moe.n_routed, dtype=torch.int64)
                self.register_buffer(name, counts_E, persistent=False)

    def reset_buffers(self) -> None:
        """Forget the counts; needed after construction on the meta device, and once per step."""
        if self.entropy_sum is not None:
            self.entropy_sum.zero_()
        if self.dispatcher is not None:
            self.chosen_E.zero_()
            self.dropped_E.zero_()

    def forward(self, normed_BSD: Tensor, routing: Routing | None) -> Departed | None:
        if self.dispatcher is None or routing is None:
            return None
        leaving = self.dispatcher.leaving(normed_BSD.flatten(0, 1), routing)
        travelling = tuple(part.begin() for part in leaving.parts)
        if not self.hidden and len(travelling) == 1:
            travelling = settle(travelling)
        if self.training:
            self.chosen_E += count_pairs(routing, self.dispatcher.placement.n_experts)
            if routing.kept_TK is not None:
                dropped_N = (~routing.kept_TK).flatten().long()
                for counts_E in (self.chosen_E, self.dropped_E):
                    counts_E.scatter_add_(0, routing.experts_TK.flatten(), dropped_N)
            if routing.entropy_sum is not None:
                if self.entropy_sum is None:
                    self.entropy_sum = torch.zeros_like(routing.entropy_sum)
                self.entropy_sum += routing.entropy_sum
        return Departed(travelling, tuple(part.ticket for part in leaving.parts), leaving.ticket)


class ExpertsPart(nn.Module):
    """Routed experts over the rows, beside shared experts (or a dense feed-forward) over the tokens."""

    def __init__(self, model: ModelConfig, around: Surroundings | None) -> None:
        super().__init__()
        residual_depth = 2 * model.n_layers
        shared_dim = model.dense_dim if around is None else model.moe.n_shared * model.moe.expert_dim
        self.shared = FeedForward(model.dim, shared_dim, residual_depth) if shared_dim else None
        self.routed: RoutedExperts | None = None
        self.dispatcher = around.dispatcher if around else None
        self.hides = around is not None and around.hide_behind_shared
        self.hidden = around is not None and around.hide_behind_others
        if around is not None:
            slots = around.dispatcher.placement.slots_of_rank[around.ep_rank]
            self.routed = RoutedExperts(
                model.moe, model.dim, residual_depth, slots, model.expert_backend, around.whole_backward
            )

    def forward(self, normed_BSD: Tensor, departed: Departed | None) -> ExpertOutput:
        if self.shared is not None and self.hides:
            wide_BSF = self.shared.widen(normed_BSD)
            going = self._routed(departed)
            return ExpertOutput(self.shared.narrow(wide_BSF), going)
        going = self._routed(departed)
        back = going if self.hidden else settle(going)
        return ExpertOutput(self.shared(normed_BSD) if self.shared is not None else None, back)

    def _routed(self, departed: Departed | None) -> tuple[Travelling, ...]:
        if self.routed is None or departed is None:
            return ()
        going: tuple[Travelling, ...] = self.routed(departed.travelling, departed.tickets, self.dispatcher)
        return going


class CombinePart(nn.Module):
    """Brings rows back and adds everything to the residual stream."""

    def __init__(self, dispatcher: Dispatcher | None) -> None:
        super().__init__()
        self.dispatcher = dispatcher

    def forward(self, attended: Attended, departed: Departed | None, output: ExpertOutput) -> Tensor:
        y_BSD = attended.residual_BSD
        if output.shared_BSD is not None:
            y_BSD = y_BSD + output.shared_BSD
        if self.dispatcher is None or departed is None or attended.routing is None:
            return y_BSD
        parts_ND = [travelling.arrive() for travelling in output.travelling]
        rows_ND = parts_ND[0] if len(parts_ND) == 1 else torch.cat(parts_ND)
        routed_TD = self.dispatcher.returned(rows_ND, departed.ticket, attended.routing)
        return y_BSD + routed_TD.view_as(y_BSD)


class Block(nn.Module):
    """One layer: with `around` a mixture of experts, without a dense one."""

    def __init__(self, model: ModelConfig, around: Surroundings | None) -> None:
        super().__init__()
        dispatcher = around.dispatcher if around else None
        self.attention = AttentionPart(model, around)
        self.dispatch = DispatchPart(model, around)
        self.experts = ExpertsPart(model, around)
        self.combine = CombinePart(dispatcher)

    def forward(self, x_BSD: Tensor, positions: Positions) -> tuple[Tensor, Tensor | None]:
        """The residual stream after this layer, and what its router adds to the objective (a sum over tokens)."""
        attended = self.attention(x_BSD, positions)
        departed = self.dispatch(attended.normed_BSD, attended.routing)
        output = self.experts(attended.normed_BSD, departed)
        routing = attended.routing
        return self.combine(attended, departed, output), routing.loss_sum if routing is not None else None
