"""The products of routed experts, each slot's rows by its own matrix: by torch, or by kernels of ours.

    forward      y = rows · weightᵀ                 slot by slot
    of_rows      gradient of rows = grad · weight
    of_weights   gradient of the weight = gradᵀ · rows

N rows, E slots, K width of rows, M of what is made, X tiles of rows.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Operators, so that selective recomputation keeps what they make and a trace names them; kernels alone are not seen.
PRODUCT, OF_WEIGHTS = "switchyard::grouped_product", "switchyard::grouped_weight_gradient"
torch.library.define(PRODUCT, "(Tensor rows, Tensor weight, Tensor ends, Tensor tiles, bool transposed) -> Tensor")
torch.library.define(OF_WEIGHTS, "(Tensor grad, Tensor rows, Tensor ends) -> Tensor")


class Products:
    """Those of one call of the experts, by F.grouped_mm. `offsets_E`: the ends of the slots' rows."""

    def __init__(self, offsets_E: Tensor) -> None:
        self.offsets_E = offsets_E

    def product(self, rows_NK: Tensor, weight_EMK: Tensor) -> Tensor:
        """[N, M]. For who differentiates it by hand."""
        return F.grouped_mm(rows_NK, weight_EMK.transpose(1, 2), offs=self.offsets_E)

    def forward(self, rows_NK: Tensor, weight_EMK: Tensor) -> Tensor:
        """The same, differentiable."""
        return self.product(rows_NK, weight_EMK)

    def of_rows(self, grad_NM: Tensor, weight_EMK: Tensor) -> Tensor:
        """[N, K]."""
        return F.grouped_mm(grad_NM, weight_EMK, offs=self.offsets_E)

    def of_weights(self, grad_NM: Tensor, rows_NK: Tensor) -> Tensor:
        """[E, M, K]."""
        return F.grouped_mm(grad_NM.T, rows_NK, offs=self.offsets_E)


class TritonProducts(Products):
    """By models/grouped_product_kernel.py, which leaves rows past the last end as they are. At least one row."""

    def __init__(self, offsets_E: Tensor, n_rows: int) -> None:
        from models.grouped_product_kernel import tiles_of  # Triton comes with torch for CUDA alone

        super().__init__(offsets_E)
        self.tiles_X2 = tiles_of(offsets_E, n_rows)
        """For forward and backward."""

    def product(self, rows_NK: Tensor, weight_EMK: Tensor) -> Tensor:
        """See Products."""
        return self._call(rows_NK, weight_EMK, transposed=True)

    def forward(self, rows_NK: Tensor, weight_EMK: Tensor) -> Tensor:
        """See Products."""
        y_NM: Tensor = _Product.apply(rows_NK, weight_EMK, self)
        return y_NM

    def of_rows(self, grad_NM: Tensor, weight_EMK: Tensor) -> Tensor:
        """See Products."""
        return self._call(grad_NM, weight_EMK, transposed=False)

    def of_weights(self, grad_NM: Tensor, rows_NK: Tensor) -> Tensor:
        """See Products."""
        operator = torch.ops.switchyard.grouped_weight_gradient.default
        gradient_EMK: Tensor = operator(grad_NM.contiguous(), rows_NK.contiguous(), self.offsets_E)
        return gradient_EMK

    def _call(self, rows: Tensor, weight_EMK: Tensor, transposed: bool) -> Tensor:
        operator = torch.ops.switchyard.grouped_product.default
        made: Tensor = operator(rows.contiguous(), weight_EMK.contiguous(), self.offsets_E, self.tiles_X2, transposed)
        return made


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_NK: Tensor, weight_EMK: Tensor, products: TritonProducts) -> Tensor:
        ctx.save_for_backward(rows_NK, weight_EMK)
        ctx.products = products
        return products.product(rows_NK, weight_EMK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NM: Tensor) -> tuple[Tensor, Tensor, None]:
        rows_NK, weight_EMK = ctx.saved_tensors
        return ctx.products.of_rows(grad_NM, weight_EMK), ctx.products.of_weights(grad_NM, rows_NK), None


def _launch_product(rows: Tensor, weight: Tensor, offsets_E: Tensor, tiles_X2: Tensor, transposed: bool) -> Tensor:
    from models.grouped_product_kernel import grouped_product

    return grouped_product(rows, weight, offsets_E, tiles_X2, transposed)


def _launch_of_weights(grad_NM: Tensor, rows_NK: Tensor, offsets_E: Tensor) -> Tensor:
    from models.grouped_product_kernel import grouped_weight_gradient

    return grouped_weight_gradient(grad_NM, rows_NK, offsets_E)


torch.library.impl(PRODUCT, "default", _launch_product)
torch.library.impl(OF_WEIGHTS, "default", _launch_of_weights)
