"""`python -m harness.kernels_beside_products [cuda]`: the products of models/grouped_product_kernel.py, one by one,
beside a product a slot in float64, with the error of torch's grouped_mm in the same dtype as the yardstick.

Rows beyond the last slot's are there, and are not finite; theirs in what is made are not written.
"""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from harness.interpreted import let_loops_count
from models.grouped_products import Products, TritonProducts

LOADS = ((5,), (0,), (0, 130, 0, 1, 257, 0), (1,) * 11, (0, 3, 0, 1) * 64)
"""Without rows; tiles that are cut, more of them than take turns before the next column, more slots than tiles."""
WIDTHS = ((64, 64), (24, 264), (264, 24), (8, 640), (72, 392))
"""Of rows and of what is made: less than a piece and a tile, cut, several; and where the higher tile covers better."""
HUGE = ((0, 20_000, 3, 0, 0, 1, 45_000, 129), (1408, 2048), 30_000)


def made_by(products: Products, rows_NK: Tensor, weight_EMK: Tensor, grad_NM: Tensor) -> list[Tensor]:
    """Rows by their weight, and both gradients."""
    made = products.forward(rows_NK, weight_EMK), products.of_rows(grad_NM, weight_EMK)
    return [*made, products.of_weights(grad_NM, rows_NK)]


def slot_by_slot(ends: Sequence[int], rows_NK: Tensor, weight_EMK: Tensor, grad_NM: Tensor) -> list[Tensor]:
    """The same, of the rows that have a slot."""
    rows, grads = rows_NK.tensor_split(ends)[:-1], grad_NM.tensor_split(ends)[:-1]
    y = [x @ w.T for x, w in zip(rows, weight_EMK, strict=True)]
    of_rows = [g @ w for g, w in zip(grads, weight_EMK, strict=True)]
    return [torch.cat(y), torch.cat(of_rows), torch.stack([g.T @ x for g, x in zip(grads, rows, strict=True)])]


def check(loads: Sequence[int], widths: tuple[int, int], beyond: int, device: str) -> None:
    """Raises AssertionError where they differ."""
    # The interpreter cuts off what bfloat16 has no place for, where a GPU rounds.
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    generator = torch.Generator().manual_seed(9)
    last, (width, made) = sum(loads), widths
    shapes = (last + beyond, width), (len(loads), made, width), (last + beyond, made)
    given = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    given[0][last:] = given[2][last:] = torch.nan
    ends_E = torch.tensor(loads, device=device).cumsum(0).int()
    exact = slot_by_slot(ends_E.tolist(), *(x.double() for x in given))
    plain = made_by(Products(ends_E), *given)
    torch.use_deterministic_algorithms(True)  # what is allocated is found full of NaN
    try:
        ours = made_by(TritonProducts(ends_E, len(given[0])), *given)
    finally:
        torch.use_deterministic_algorithms(False)
    for name, e, p, o in zip(("y", "gradient of rows", "gradient of weights"), exact, plain, ours, strict=True):
        if name != "gradient of weights":
            assert o[last:].isnan().all(), f"{name}: a row of no slot was written"
            p, o = p[:last], o[:last]
        assert o.isfinite().all(), f"{name} of {loads}, {widths} is not finite"
        error, yardstick, scale = ((x.double()).norm().item() for x in (o - e, p - e, e))
        assert error <= 1.5 * yardstick + 1e-6 * scale, f"{name} of {loads}, {widths}: {error} beside {yardstick}"
    for slot, n_rows in enumerate(loads):
        assert n_rows or ours[2][slot].eq(0).all(), "the weight of a slot without rows has a gradient"


def main(device: str) -> None:
    """All of them."""
    if device == "cpu":
        let_loops_count()
    for loads in LOADS:
        for widths in WIDTHS[:1] if len(loads) > 100 else WIDTHS:
            check(loads, widths, 40, device)
    if device == "cuda":
        check(*HUGE, device)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cpu")
