"""Products of bfloat16 left in float32: what a GPU does, on a CPU that is taught torch's operators for it."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import wide_product
from models.wide_product import add_product_, halves, wide_linear


@pytest.fixture(scope="module")
def operators() -> Iterator[None]:
    """torch has them on CUDA alone; here they are float32's."""

    def mm(a: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
        assert a.dtype is b.dtype is torch.bfloat16
        return a.to(out_dtype) @ b.to(out_dtype)

    def addmm_out(
        c: Tensor, a: Tensor, b: Tensor, out_dtype: torch.dtype, *, beta: float = 1, alpha: float = 1, out: Tensor
    ) -> Tensor:
        assert c.dtype is out_dtype
        return torch.addmm(c, a.to(out_dtype), b.to(out_dtype), beta=beta, alpha=alpha, out=out)

    library = torch.library.Library("aten", "IMPL", "CPU")
    library.impl("mm.dtype", mm)
    library.impl("addmm.dtype_out", addmm_out)
    yield
    del library


@pytest.fixture
def as_on_a_gpu(operators: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide_product, "stays_wide", lambda x: x.dtype is torch.bfloat16)


def samples(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x [2, 90, K], a weight [N, K], and a gradient of their product in float32."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 90, 32), (24, 32), (2, 90, 24))
    x_BSK, weight_NK, grad_BSN = (torch.randn(*shape, generator=generator) for shape in shapes)
    return x_BSK.bfloat16().to(dtype).requires_grad_(), weight_NK.bfloat16().to(dtype).requires_grad_(), grad_BSN


def results(product: Any, dtype: torch.dtype) -> list[Tensor]:
    x_BSK, weight_NK, grad_BSN = samples(dtype)
    y_BSN = product(x_BSK, weight_NK)
    grads = torch.autograd.grad(y_BSN, (x_BSK, weight_NK), grad_BSN.to(y_BSN.dtype))
    assert [grad.dtype for grad in grads] == [dtype, dtype]
    return [out.detach() for out in (y_BSN, *grads)]


@pytest.mark.parametrize("compiled", [False, True])
def test_two_halves_hold_sixteen_digits(compiled: bool) -> None:
    """Compiled too, where float32 goes to bfloat16 and back without a rounding."""
    split = torch.compile(halves, fullgraph=True) if compiled else halves
    x = torch.cat([torch.randn(10_000) * scale for scale in (1e-20, 1e-3, 1.0, 1e20)])
    high, low = split(x)
    assert high.dtype is low.dtype is torch.bfloat16
    assert ((high.double() + low.double() - x.double()).abs() <= 2**-17 * x.abs().double()).all()
    for wrong in ("inf", "-inf", "nan"):
        assert not sum(split(torch.full_like(x, float(wrong)))).isfinite().any()


@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_left_in_float32_it_is_the_widened_operands_product(as_on_a_gpu: None, backend: str | None) -> None:
    def widened(x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x.float(), weight.float())

    compiled = torch.compile(wide_linear, fullgraph=True, dynamic=False, backend=backend) if backend else wide_linear
    exact, plain = results(wide_linear, torch.float64), results(widened, torch.bfloat16)
    ours = results(compiled, torch.bfloat16)
    assert ours[0].dtype is torch.float32
    torch.testing.assert_close(ours[0], plain[0], rtol=1e-6, atol=1e-5)
    for e, p, o in zip(exact[1:], plain[1:], ours[1:], strict=True):
        # Both are rounded once, at the end; with the gradient rounded before, it would be half as much again.
        assert (o - e).norm() <= 1.02 * (p - e).norm()


def test_it_is_asked_for_one_product_forward_and_two_back(as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """And none of them of float32 operands."""
    made: list[torch.dtype] = []

    class Products(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if function.overloadpacket is torch.ops.aten.mm:
                made.append(args[0].dtype)
            return function(*args, **(kwargs or {}))

    with Products():
        results(wide_linear, torch.bfloat16)
    assert made == [torch.bfloat16] * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_where_torch_cannot_operands_are_widened(dtype: torch.dtype) -> None:
    ours, exact = results(wide_linear, dtype), results(wide_linear, torch.float64)
    assert ours[0].dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    for o, e in zip(ours, exact, strict=True):
        assert ((o.double() - e).norm() <= (2**-8 if o.dtype is torch.bfloat16 else 1e-6) * e.norm()).all()


@pytest.mark.parametrize("wide", [False, True])
def test_sums_of_products_begin_anew_and_go_on(wide: bool, request: pytest.FixtureRequest) -> None:
    if wide:
        request.getfixturevalue("as_on_a_gpu")
    a_MK, b_KN = torch.randn(3, 4).bfloat16(), torch.randn(4, 5).bfloat16()
    sum_MN = torch.full((3, 5), float("nan"))
    for i in range(2):
        add_product_(sum_MN, a_MK, b_KN, first=i == 0)
    # On a CPU each product is rounded before it is added.
    torch.testing.assert_close(sum_MN, 2 * (a_MK.float() @ b_KN.float()), rtol=1e-6 if wide else 2**-7, atol=1e-6)
    one_MN = torch.full((3, 5), float("nan"), dtype=torch.bfloat16)
    add_product_(one_MN, a_MK, b_KN, first=True)
    assert torch.equal(one_MN, a_MK @ b_KN)
