"""`python -m harness.kernels_beside_rows [cuda]`: the Triton kernels of models/row_kernels.py beside torch's operators
in float64, with torch's own error in the same dtype as the yardstick."""

import sys

import torch
from torch import Tensor

from models.permutation import Sorted, sort_pairs
from models.router import Routing
from models.rows import OnePassRows, Rows

NAMES = (
    "rows",
    "gradient of x",
    "sums",
    "gradient of rows",
    "gradient of weights",
    "sums that are not weighed",
    "their gradient of rows",
)
"""Of `results`."""


class Everywhere(OnePassRows):
    """By the kernels, whatever the device: Triton's interpreter has a CPU."""

    def takes(self, x: Tensor) -> bool:
        """All of it."""
        return True


def results(
    rows: Rows, x_TD: Tensor, pairs: Sorted, routing: Routing, probes: tuple[Tensor, Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """Rows, sums, and gradients of both. What lies past the last end is NaN where it is read, and left out here."""
    x_TD = x_TD.to(dtype).requires_grad_()
    weights_TK = routing.weights_TK.to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    top_k, end = routing.experts_TK.shape[1], int(pairs.end_1)
    rows_ND = rows.of_tokens(x_TD, pairs, top_k)
    grad_ND = probes[0].to(dtype)
    made_ND = -grad_ND  # a token's rows are unlike each other: one that is taken for another shows
    grad_ND[end:] = made_ND[end:] = torch.nan
    (of_x,) = torch.autograd.grad(rows_ND, x_TD, grad_ND, retain_graph=True)
    made_ND.requires_grad_()
    y_TD = rows.weighed(made_ND, pairs, routing._replace(weights_TK=weights_TK))
    of_rows, of_weights = torch.autograd.grad(y_TD, (made_ND, weights_TK), probes[1].to(dtype))
    sum_TD = rows.summed(made_ND, pairs, top_k)
    (of_summed,) = torch.autograd.grad(sum_TD, made_ND, probes[1].to(dtype))
    outcomes = (rows_ND[:end], of_x, y_TD, of_rows[:end], of_weights, sum_TD, of_summed[:end])
    return [out.detach().double() for out in outcomes]


def largest(x: Tensor) -> float:
    """By size; 0 of nothing."""
    return x.abs().max().item() if x.numel() else 0.0


def main(device: str) -> None:
    """Raises AssertionError where they differ."""
    generator = torch.Generator().manual_seed(4)
    cases = ((9, 3, 5, 24, 0.0, False), (1, 1, 1, 8, 0.0, False), (16, 2, 4, 64, 0.3, False), (16, 2, 4, 64, 0.3, True))
    cases += ((5, 2, 4, 24, 1.0, True),)
    cases += ((4096, 6, 64, 2048, 0.0, False), (4096, 8, 128, 2048, 0.1, True)) if device == "cuda" else ()
    for n_tokens, top_k, n_experts, dim, dropped, room_for_all in cases:
        experts_TK = torch.rand(n_tokens, n_experts, generator=generator).topk(top_k).indices.to(device)
        kept_TK = torch.rand(n_tokens, top_k, generator=generator).to(device) >= dropped
        place_N = experts_TK.flatten().masked_fill(~kept_TK.flatten(), n_experts)
        pairs = sort_pairs(place_N, n_experts, some_have_none=dropped > 0)
        if not room_for_all:
            pairs = pairs.cut(int(pairs.end_1))
        routing = Routing(experts_TK, torch.rand(n_tokens, top_k, generator=generator).to(device))
        x_TD = torch.randn(n_tokens, dim, generator=generator).to(device)
        probes = tuple(torch.randn(n, dim, generator=generator).to(device) for n in (len(pairs.order_N), n_tokens))
        assert len(probes) == 2
        exact = results(Rows(), x_TD, pairs, routing, probes, torch.float64)
        # The interpreter cuts off what bfloat16 has no place for, where a GPU rounds.
        for dtype in (torch.float32, torch.bfloat16) if device == "cuda" else (torch.float32,):
            plain, ours = (results(rows, x_TD, pairs, routing, probes, dtype) for rows in (Rows(), Everywhere()))
            for name, e, p, o in zip(NAMES, exact, plain, ours, strict=True):
                error, yardstick = largest(o - e), largest(p - e)
                assert error <= 1.5 * yardstick + 1e-6, f"{name} in {dtype}: {error} beside {yardstick}"


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cpu")
