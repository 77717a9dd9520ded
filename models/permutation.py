"""Rows in another order: by slot, and back.

Both directions are gathers, in forward and in backward: a scatter-add would sum with atomics on a GPU, in an order that
changes from run to run.

T tokens, K experts per token, N = T·K pairs or rows, D model width, E places.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.router import Routing


class Sorted(NamedTuple):
    """(token, expert) pairs in the order of their places; the pair (t, k) is number t·K + k."""

    order_N: Tensor
    """int64: the pair of each row. Past the last end, those that have no place: as rows they are never computed."""
    inverse_N: Tensor
    """int64: the row of each pair; at or past the last end if it has none."""
    ends_E: Tensor
    """int64: the end of each place's rows."""
    some_have_none: bool
    """Whether a pair may have no place."""

    @property
    def end_1(self) -> Tensor:
        """Of all rows, int64 [1], on the device: what rows past it hold is undefined, and nothing may come of it."""
        return self.ends_E[-1:]

    def cut(self, n_rows: int) -> "Sorted":
        """Without rows for pairs that have no place; `n_rows`: the last end, which the host knows."""
        return self._replace(order_N=self.order_N[:n_rows], inverse_N=self.inverse_N.clamp(max=n_rows))


def sort_pairs(place_N: Tensor, n_places: int, some_have_none: bool) -> Sorted:
    """Sort pairs by place; `n_places` stands for none. A row for each pair: nothing waits for the GPU."""
    if n_places < torch.iinfo(torch.int16).max:
        place_N = place_N.short()  # a radix sort goes over the keys once for each of their bytes
    sorted_N, order_N = place_N.sort(stable=True)
    # The end of each place's rows by search, not bincount: no host synchronisation, and deterministic on every device.
    ends_E = torch.searchsorted(
        sorted_N, torch.arange(n_places, dtype=place_N.dtype, device=place_N.device), right=True
    )
    inverse_N = torch.empty_like(order_N)
    inverse_N[order_N] = torch.arange(order_N.numel(), device=order_N.device)
    return Sorted(order_N, inverse_N, ends_E, some_have_none)


def transpose_blocks(counts_RC: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
    """Of rows in blocks of these counts, laid by R and within that by C: the order that lays them by C, then R, and its
    inverse, int64 [n_rows]. Without a sort: within a block each row moves as far as the block does.

    Args:
        counts_RC: int64.
        n_rows: their sum, which the host knows: nothing waits for the GPU.
    """
    by_R, by_C = counts_RC.flatten(), counts_RC.T.flatten()
    starts_RC = (by_R.cumsum(0) - by_R).view_as(counts_RC)
    starts_CR = (by_C.cumsum(0) - by_C).view_as(counts_RC.T)
    moved_RC = starts_CR.T - starts_RC
    row_N = torch.arange(n_rows, device=counts_RC.device)
    order_N = row_N - moved_RC.T.flatten().repeat_interleave(by_C, output_size=n_rows)
    inverse_N = row_N + moved_RC.flatten().repeat_interleave(by_R, output_size=n_rows)
    return order_N, inverse_N


def to_rows(x_TD: Tensor, pairs: Sorted, top_k: int) -> Tensor:
    """One row for each sorted pair, [N, D]: its token's. Backward adds a token's gradients up."""
    rows_ND: Tensor = _ToRows.apply(x_TD, pairs, top_k)
    return rows_ND


def from_rows(rows_ND: Tensor, pairs: Sorted) -> Tensor:
    """The row of each pair, in the pairs' own order; 0 for those that have none."""
    back_ND: Tensor = _FromRows.apply(rows_ND, pairs)
    return back_ND


def weigh(rows_ND: Tensor, routing: Routing) -> Tensor:
    """Σ over its K experts of a token's rows by weight: [T·K, D] to [T, D]."""
    n_tokens, top_k = routing.experts_TK.shape
    rows_TKD = rows_ND.view(n_tokens, top_k, rows_ND.shape[1])
    weights_T1K = routing.weights_TK.unsqueeze(1).to(rows_ND.dtype)
    # A product of [1, K] and [K, D] per token: it sums in float32 inside, and makes no [T, K, D] temporary.
    return torch.bmm(weights_T1K, rows_TKD).squeeze(1)


def reorder(rows_ND: Tensor, order_N: Tensor, inverse_N: Tensor) -> Tensor:
    """rows[order]; backward gathers by the inverse."""
    reordered_ND: Tensor = _Reorder.apply(rows_ND, order_N, inverse_N)
    return reordered_ND


def count_pairs(routing: Routing, n_experts: int) -> Tensor:
    """Pairs of these tokens that are kept, per logical expert of all ranks, int64 [E]."""
    experts_N = routing.experts_TK.flatten()
    kept_N = torch.ones_like(experts_N) if routing.kept_TK is None else routing.kept_TK.flatten().long()
    return torch.zeros(n_experts, dtype=torch.int64, device=experts_N.device).scatter_add_(0, experts_N, kept_N)


class _ToRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, pairs: Sorted, top_k: int) -> Tensor:
        ctx.pairs, ctx.top_k = pairs, top_k
        return x_TD.index_select(0, pairs.order_N // top_k)

    @staticmethod
    def backward(ctx: Any, grad_rows_ND: Tensor) -> tuple[Tensor, None, None]:
        return _gather(grad_rows_ND, ctx.pairs).unflatten(0, (-1, ctx.top_k)).sum(1), None, None


class _FromRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor, pairs: Sorted) -> Tensor:
        ctx.pairs, ctx.n_rows = pairs, len(rows_ND)
        return _gather(rows_ND, pairs)

    @staticmethod
    def backward(ctx: Any, grad_back_ND: Tensor) -> tuple[Tensor, None]:
        inverse_N = ctx.pairs.inverse_N
        # One row more than there are, for the gradients of pairs that have none, which go nowhere.
        n_places = ctx.n_rows + (ctx.n_rows < len(inverse_N))
        grad_rows_ND = grad_back_ND.new_empty(n_places, grad_back_ND.shape[1])
        return grad_rows_ND.index_copy_(0, inverse_N, grad_back_ND)[: ctx.n_rows], None


class _Reorder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor, order_N: Tensor, inverse_N: Tensor) -> Tensor:
        ctx.save_for_backward(inverse_N)
        return rows_ND.index_select(0, order_N)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None, None]:
        (inverse_N,) = ctx.saved_tensors
        return grad_ND.index_select(0, inverse_N), None, None


def _gather(rows_ND: Tensor, pairs: Sorted) -> Tensor:
    """Each pair's row, and zeros for the pairs that have none: of rows that were cut, a row of them just past the last
    one; else whatever lies past the end, NaN perhaps, is written over."""
    if len(rows_ND) < len(pairs.inverse_N):
        return F.pad(rows_ND, (0, 0, 0, 1)).index_select(0, pairs.inverse_N)
    back_ND = rows_ND.index_select(0, pairs.inverse_N)
    if pairs.some_have_none:
        back_ND.masked_fill_((pairs.inverse_N >= pairs.end_1).unsqueeze(1), 0)
    return back_ND
