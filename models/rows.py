"""How tokens become rows and rows tokens again: by torch's operators, or in one pass by kernels of ours.

T tokens, K experts per token, N rows, D model width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from models.config import RowBackend
from models.permutation import Sorted, from_rows, to_rows, weigh
from models.router import Routing
from models.triton_here import kernels_run

Place = Callable[[Tensor, int], Tensor]
"""Where so many tokens' sums, like a tensor, are to lie."""


class Rows:
    """By torch's operators."""

    def summing_into(self, place: Place) -> "Rows":
        """The same, with sums there, gradients of tokens too, where they can be made anywhere."""
        return self

    def of_tokens(self, x_TD: Tensor, pairs: Sorted, top_k: int) -> Tensor:
        """One row for each sorted pair: its token's."""
        return to_rows(x_TD, pairs, top_k)

    def summed(self, rows_ND: Tensor, pairs: Sorted, top_k: int) -> Tensor:
        """Σ over its K experts of a token's rows, [T, D]; 0 for pairs that have none."""
        return from_rows(rows_ND, pairs).unflatten(0, (-1, top_k)).sum(1)

    def weighed(self, rows_ND: Tensor, pairs: Sorted, routing: Routing) -> Tensor:
        """The same by weight."""
        return weigh(from_rows(rows_ND, pairs), routing)


class OnePassRows(Rows):
    """By models/row_kernels.py, where they run: on a GPU, in float32 or less. They leave rows past the last end."""

    def __init__(self, place: Place | None = None) -> None:
        """`place`: of sums that are not weighed, and gradients of tokens; None: new memory."""
        self._place = place or _anywhere

    def summing_into(self, place: Place) -> "Rows":
        """See Rows."""
        return type(self)(place)

    def of_tokens(self, x_TD: Tensor, pairs: Sorted, top_k: int) -> Tensor:
        """See Rows."""
        if not self.takes(x_TD):
            return super().of_tokens(x_TD, pairs, top_k)
        rows_ND: Tensor = _OfTokens.apply(x_TD, pairs, top_k, self._place)
        return rows_ND

    def summed(self, rows_ND: Tensor, pairs: Sorted, top_k: int) -> Tensor:
        """See Rows."""
        if not self.takes(rows_ND):
            return super().summed(rows_ND, pairs, top_k)
        y_TD: Tensor = _Summed.apply(rows_ND, pairs, top_k, self._place)
        return y_TD

    def weighed(self, rows_ND: Tensor, pairs: Sorted, routing: Routing) -> Tensor:
        """See Rows."""
        if not self.takes(rows_ND):
            return super().weighed(rows_ND, pairs, routing)
        y_TD: Tensor = _Weighed.apply(rows_ND, routing.weights_TK, pairs)
        return y_TD

    def takes(self, x: Tensor) -> bool:
        """Whether the kernels run there."""
        return kernels_run(x)


def build_rows(backend: RowBackend) -> Rows:
    """By name."""
    return OnePassRows() if backend is RowBackend.auto else Rows()


def _anywhere(like: Tensor, n_tokens: int) -> Tensor:
    return like.new_empty(n_tokens, like.shape[1])


class _OfTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, pairs: Sorted, top_k: int, place: Place) -> Tensor:
        from models.row_kernels import of_tokens  # Triton comes with torch for CUDA alone

        ctx.pairs, ctx.top_k, ctx.place = pairs, top_k, place
        return of_tokens(x_TD.contiguous(), pairs, top_k)

    @staticmethod
    def backward(ctx: Any, grad_rows_ND: Tensor) -> tuple[Tensor, None, None, None]:
        from models.row_kernels import gather_sum

        return gather_sum(grad_rows_ND.contiguous(), ctx.pairs, None, ctx.top_k, ctx.place), None, None, None


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor, pairs: Sorted, top_k: int, place: Place) -> Tensor:
        from models.row_kernels import gather_sum

        ctx.pairs, ctx.top_k = pairs, top_k
        return gather_sum(rows_ND.contiguous(), pairs, None, top_k, place)

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, None, None, None]:
        from models.row_kernels import of_tokens

        return of_tokens(grad_TD.contiguous(), ctx.pairs, ctx.top_k), None, None, None


class _Weighed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor, weights_TK: Tensor, pairs: Sorted) -> Tensor:
        from models.row_kernels import gather_sum

        ctx.pairs = pairs
        ctx.save_for_backward(rows_ND, weights_TK)
        return gather_sum(rows_ND.contiguous(), pairs, weights_TK, weights_TK.shape[1], _anywhere)

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, Tensor, None]:
        from models.row_kernels import spread

        rows_ND, weights_TK = ctx.saved_tensors
        grad_rows_ND, grad_weights_TK = spread(rows_ND.contiguous(), ctx.pairs, weights_TK, grad_TD)
        return grad_rows_ND, grad_weights_TK, None
