"""`python -m harness.kernels_beside_experts [cuda]`: the experts of models/fused_experts.py, by either products, beside
the loop in float64, with the error of torch's operators between grouped products in the same dtype as the yardstick.

Rows beyond the last slot's are there, and are not finite.
"""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from harness.interpreted import let_loops_count
from models.config import ExpertBackend, MoEConfig
from models.experts import RoutedExperts
from models.swiglu_kernel import COLUMNS, ROWS, swiglu, swiglu_back, swiglu_backward, swiglu_forward
from models.triton_here import hopper_lacks

NAMES = ("y", "gradient of rows", "gradient of gate and up", "gradient of down", "gradient of weights")
"""Of `results`."""
LOADS = ((3, 0, 40, 1, 0), (0, 0, 0), (1,), (0, 129, 0, 0, 7, 16))
MANY = (2, 0, 1, 1, 300, 1, 1, 1, 1, 1, 0, 1)
"""More tiles of rows than take turns before the next column."""
HUGE = (0, 20_000, 3, 0, 0, 1, 45_000, 129)


def results(backend: ExpertBackend, weights: Sequence[Tensor], given: Sequence[Tensor], ends_E: Tensor) -> list[Tensor]:
    """In the dtype of `weights`: rows and gradients that belong to a slot. `given`: rows, their probe, and if there are
    weights these."""
    n_slots, _, width, dim = weights[0].shape
    module = RoutedExperts(MoEConfig(n_routed=n_slots, expert_dim=width), dim, 1, tuple(range(n_slots)), backend)
    rows_ND, probe_ND = (x.to(weights[0].dtype) for x in given[:2])
    wide = torch.promote_types(weights[0].dtype, torch.float32)
    leaves = [x.detach().clone().requires_grad_() for x in (rows_ND, *weights, *(x.to(wide) for x in given[2:]))]
    y_ND = module.compute(leaves[0], ends_E, *leaves[1:])
    gradients = torch.autograd.grad(y_ND, leaves, probe_ND)
    last = int(ends_E[-1])
    of_rows = [y_ND[:last], gradients[0][:last], *gradients[1:3], *(x[:last] for x in gradients[3:])]
    return [out.detach().double() for out in of_rows]


def check_experts(
    backend: ExpertBackend, loads: Sequence[int], sizes: tuple[int, int], beyond: int, weighted: bool, device: str
) -> None:
    """Forward and all gradients, of slots with these numbers of rows and of `beyond` rows of none."""
    # The interpreter cuts off what bfloat16 has no place for, where a GPU rounds.
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    dim, width = sizes
    generator = torch.Generator().manual_seed(5)
    last, n_slots = sum(loads), len(loads)
    ends_E = torch.tensor(loads, device=device).cumsum(0).int()
    shapes = ((last + beyond, dim), (last + beyond, dim), (n_slots, 2, width, dim), (n_slots, dim, width))
    drawn = [torch.randn(shape, generator=generator).to(dtype).to(device) for shape in shapes]
    given, weights = drawn[:2], [drawn[2] * dim**-0.5, drawn[3] * width**-0.5]
    given += [torch.rand(last + beyond, generator=generator).to(device)] if weighted else []
    for x in given:
        x[last:] = float("nan")
    exact = results(ExpertBackend.loop, [weight.double() for weight in weights], given, ends_E)
    plain = results(ExpertBackend.grouped_mm, weights, given, ends_E)
    ours = results(backend, weights, given, ends_E)
    for name, e, p, o in zip(NAMES[: len(exact)], exact, plain, ours, strict=True):
        assert o.isfinite().all(), f"{name} of {loads} by {backend} is not finite"
        for measure in (
            lambda error: error.norm().item(),
            lambda error: error.abs().amax().item() if len(error) else 0,
        ):
            error, yardstick = measure(o - e), measure(p - e)
            assert error <= 1.5 * yardstick + 1e-6 * (1 + measure(e)), (
                f"{name} of {loads} by {backend}: {error} beside {yardstick}"
            )


def check_kernels(n_rows: int, beyond: int, width: int, device: str) -> None:
    """SwiGLU and its gradient in float32; rows beyond are left as they are, and values may be as large as can be."""
    generator = torch.Generator().manual_seed(6)
    gate_up_NW, grad_NF = (torch.randn(n_rows + beyond, n, generator=generator).to(device) for n in (2 * width, width))
    gate_up_NW[: n_rows // 2] *= 100
    ends_E = torch.tensor([0, n_rows // 3, n_rows, n_rows], dtype=torch.int32, device=device)
    weights_N = torch.rand(n_rows + beyond, generator=generator).to(device)
    wide, heavy = (x.double().requires_grad_() for x in (gate_up_NW, weights_N))
    gate, up = wide.chunk(2, dim=1)
    expected_h = torch.nn.functional.silu(gate) * up * heavy.unsqueeze(1)
    expected_grad, of_weights = torch.autograd.grad(expected_h, (wide, heavy), grad_NF.double())
    h_NF = swiglu(gate_up_NW, ends_E, weights_N)
    grad_NW, again_NF, grad_weights_N = swiglu_backward(gate_up_NW, grad_NF, ends_E, weights_N)
    assert grad_weights_N is not None
    scale = of_weights.abs().amax().item() if n_rows else 0.0
    torch.testing.assert_close(grad_weights_N[:n_rows].double(), of_weights[:n_rows], rtol=1e-5, atol=1e-5 * scale)
    assert grad_weights_N[n_rows:].eq(0).all(), "a row of no slot has a gradient"
    # By two programs, which go on from tile to tile.
    left_NF, left_again_NF, left_NW, left_N = (
        torch.full_like(x, 7.0) for x in (h_NF, again_NF, grad_NW, grad_weights_N)
    )
    sizes = len(ends_E), width, True, ROWS, COLUMNS
    swiglu_forward[(2,)](gate_up_NW, ends_E, weights_N, left_NF, *sizes)
    swiglu_back[(2,)](gate_up_NW, grad_NF, ends_E, weights_N, left_NW, left_again_NF, left_N, *sizes)
    for many, few, expected in (
        (h_NF, left_NF, expected_h),
        (again_NF, left_again_NF, expected_h),
        (grad_NW, left_NW, expected_grad),
        (grad_weights_N, left_N, grad_weights_N.double()),
    ):
        torch.testing.assert_close(many[:n_rows].double(), expected[:n_rows], rtol=1e-5, atol=1e-5)
        assert torch.equal(few[:n_rows], many[:n_rows])
        assert few[n_rows:].eq(7.0).all(), "a row of no slot was written"


def main(device: str) -> None:
    """Raises AssertionError where they differ."""
    if device == "cpu":
        let_loops_count()
    for n_rows, beyond, width in ((1, 0, 8), (37, 5, 136), (0, 20, 16), (0, 0, 16), (300, 700, 24)):
        check_kernels(n_rows, beyond, width, device)
    backends = [ExpertBackend.fused]
    if device == "cpu" or not hopper_lacks(torch.device(device)):
        backends.append(ExpertBackend.triton)
    for backend in backends:
        for loads in LOADS:
            for beyond in (0, 50):
                for weighted in (False, True):
                    check_experts(backend, loads, (24, 136), beyond, weighted, device)
        check_experts(backend, MANY, (264, 72), 20, True, device)
        if device == "cuda":
            check_experts(backend, HUGE, (512, 1408), 30_000, True, device)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cpu")
