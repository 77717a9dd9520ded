"""Moving tokens to their experts and back: the interface, and the dispatcher of a model whose experts are all here.

Rows travel by permutation only. Both directions are gathers, in forward and in backward: a scatter-add would sum with
atomics on a GPU, in an order that changes from run to run.

T tokens, K experts per token, N = T·K pairs or rows, D model width, E experts (here: slots).
"""

from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from models.placement import ExpertPlacement
from models.router import Routing


class Dispatched(NamedTuple):
    """Rows sorted by slot, and what it takes to bring them back."""

    rows_ND: Tensor
    """One row per (token, expert) pair that is kept, all of a slot's rows together."""
    offsets_E: Tensor
    """int32: the end of each slot's rows."""
    inverse_N: Tensor
    """int64: where the pair (t, k), at t·K + k, went; just past the last row if it was dropped."""
    counts_E: Tensor
    """int64: rows per *logical* expert."""


class Dispatcher(Protocol):
    """Moves rows between tokens and experts; the only reader of the placement table."""

    placement: ExpertPlacement

    def dispatch(self, x_TD: Tensor, routing: Routing) -> Dispatched:
        """Send each token's row to its K experts, but for the dropped pairs."""

    def combine(self, rows_ND: Tensor, dispatched: Dispatched, routing: Routing) -> Tensor:
        """Bring the experts' rows back and sum each token's by weight: [T, D]."""


class LocalDispatcher:
    """All experts on this device, in the slots that `placement` (of one rank) says."""

    def __init__(self, placement: ExpertPlacement) -> None:
        if len(placement.slots_of_rank) != 1:
            raise ValueError(f"a local dispatcher serves one rank's experts, not {len(placement.slots_of_rank)} ranks'")
        self.placement = placement
        # Kept per device: building it in each forward would copy from pageable memory, and that waits for the GPU.
        self._slot_of_E: dict[torch.device, Tensor] = {}

    def dispatch(self, x_TD: Tensor, routing: Routing) -> Dispatched:
        n_experts = self.placement.n_experts
        slot_of_E = self._slot_of_expert(x_TD.device)
        slot_N = slot_of_E[routing.experts_TK.flatten()]
        if routing.kept_TK is not None:
            slot_N = slot_N.masked_fill(~routing.kept_TK.flatten(), n_experts)  # sorted to the end, after every slot
        order_N = slot_N.argsort(stable=True)
        # End of each slot's rows by search, not bincount: no host synchronisation, and deterministic on every device.
        slots_E = torch.arange(n_experts, device=x_TD.device)
        offsets_E = torch.searchsorted(slot_N[order_N], slots_E, right=True)
        inverse_N = torch.empty_like(order_N)
        inverse_N[order_N] = torch.arange(order_N.numel(), device=order_N.device)
        if routing.kept_TK is not None:
            n_kept = int(offsets_E[-1])  # the one wait for the GPU, and only where pairs are dropped
            order_N, inverse_N = order_N[:n_kept], inverse_N.clamp(max=n_kept)
        rows_ND: Tensor = _ToSlots.apply(x_TD, order_N, inverse_N)
        counts_by_slot_E = offsets_E.diff(prepend=offsets_E.new_zeros(1))
        return Dispatched(rows_ND, offsets_E.int(), inverse_N, counts_by_slot_E[slot_of_E])

    def combine(self, rows_ND: Tensor, dispatched: Dispatched, routing: Routing) -> Tensor:
        n_tokens, top_k = routing.experts_TK.shape
        rows_TKD: Tensor = _FromSlots.apply(rows_ND, dispatched.inverse_N).view(n_tokens, top_k, -1)
        weights_T1K = routing.weights_TK.unsqueeze(1).to(rows_ND.dtype)
        # A product of [1, K] and [K, D] per token: it sums in float32 inside, and makes no [T, K, D] temporary.
        return torch.bmm(weights_T1K, rows_TKD).squeeze(1)

    def _slot_of_expert(self, device: torch.device) -> Tensor:
        if device not in self._slot_of_E:
            self._slot_of_E[device] = torch.tensor(self.placement.position_of_expert(), device=device)
        return self._slot_of_E[device]


class _ToSlots(torch.autograd.Function):
    """rows[n] = x[order[n] // K]; backward gathers a token's gradients and sums them."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, order_N: Tensor, inverse_N: Tensor) -> Tensor:
        ctx.save_for_backward(inverse_N)
        ctx.n_tokens = x_TD.shape[0]
        return x_TD.index_select(0, order_N // (inverse_N.numel() // x_TD.shape[0]))

    @staticmethod
    def backward(ctx: Any, grad_rows_ND: Tensor) -> tuple[Tensor, None, None]:
        (inverse_N,) = ctx.saved_tensors
        return _gather(grad_rows_ND, inverse_N).view(ctx.n_tokens, -1, grad_rows_ND.shape[1]).sum(1), None, None


class _FromSlots(torch.autograd.Function):
    """back[t·K + k] = rows[inverse[t·K + k]], 0 for a dropped pair; backward undoes the permutation."""

    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor, inverse_N: Tensor) -> Tensor:
        ctx.save_for_backward(inverse_N)
        ctx.n_rows = len(rows_ND)
        return _gather(rows_ND, inverse_N)

    @staticmethod
    def backward(ctx: Any, grad_back_ND: Tensor) -> tuple[Tensor, None]:
        (inverse_N,) = ctx.saved_tensors
        # One row more than there are, for the dropped pairs' gradients, which go nowhere.
        n_places = ctx.n_rows + (ctx.n_rows < len(inverse_N))
        grad_rows_ND = grad_back_ND.new_empty(n_places, grad_back_ND.shape[1])
        return grad_rows_ND.index_copy_(0, inverse_N, grad_back_ND)[: ctx.n_rows], None


def _gather(rows_ND: Tensor, inverse_N: Tensor) -> Tensor:
    """Each pair's row; a row of zeros stands just past the last one, for the dropped pairs."""
    if len(rows_ND) < len(inverse_N):
        rows_ND = F.pad(rows_ND, (0, 0, 0, 1))
    return rows_ND.index_select(0, inverse_N)
