"""The chunked loss against torch's own, over logits that exist all at once."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from models.head import Head
from models.whole_vocabulary import IGNORED

B, S, D, V = 2, 9, 12, 21


def head(chunk_size: int, dtype: torch.dtype = torch.float64) -> Head:
    module = Head(D, V, chunk_size)
    generator = torch.Generator().manual_seed(0)
    module.weight.data = torch.randn(V, D, generator=generator, dtype=torch.float64).to(dtype)
    return module


def samples(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x_BSD = torch.randn(B, S, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    targets_BS = torch.randint(0, V, (B, S), generator=generator)
    targets_BS[0, 3] = targets_BS[1, 0] = IGNORED
    return x_BSD, targets_BS


@pytest.mark.parametrize("chunk_size", [1, 5, 18, 4096])
def test_loss_and_gradients_are_those_of_whole_logits(chunk_size: int) -> None:
    module = head(chunk_size)
    x_BSD, targets_BS = samples()
    loss = module(x_BSD, targets_BS)
    got = torch.autograd.grad(loss / 7, [x_BSD, module.weight])
    logits_TV = module.logits(x_BSD).flatten(0, 1)
    expected = F.cross_entropy(logits_TV, targets_BS.flatten(), reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)
    for gradient, wanted in zip(got, torch.autograd.grad(expected / 7, [x_BSD, module.weight]), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-14)


def test_nothing_to_learn_is_no_loss_and_no_gradient() -> None:
    module = head(4)
    x_BSD, targets_BS = samples()
    loss = module(x_BSD, torch.full_like(targets_BS, IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert x_BSD.grad is not None
    assert x_BSD.grad.eq(0).all()


def test_bf16_products_and_a_float32_softmax() -> None:
    """The same inputs, rounded to bf16; what may differ is each product's one rounding."""
    module, (x_BSD, targets_BS) = head(5, torch.bfloat16), samples(torch.bfloat16)
    loss = module(x_BSD, targets_BS)
    assert loss.dtype is torch.float32
    (got,) = torch.autograd.grad(loss / 3, [x_BSD])
    wide = head(5)
    wide.weight.data = module.weight.data.double()
    x_wide = x_BSD.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(wide(x_wide, targets_BS) / 3, [x_wide])
    assert ((got.double() - wanted).norm() / wanted.norm()).item() < 2**-7
    # A scale rounded to bf16 (1/3 is 0.13 % off there) would show as a common factor.
    assert abs((got.double() * wanted).sum() / wanted.square().sum() - 1).item() < 5e-4


def test_gradients_of_many_chunks_add_up_in_float32() -> None:
    """In bf16 a sum of 512 chunks' products would stand still: more than 5 % off."""
    generator = torch.Generator().manual_seed(2)
    x_BSD = torch.rand(1, 512, D, generator=generator).bfloat16()
    targets_BS = torch.randint(0, V, (1, 512), generator=generator)
    module, wide = head(1, torch.bfloat16), head(4096)
    wide.weight.data = module.weight.data.double()
    (got,) = torch.autograd.grad(module(x_BSD, targets_BS), [module.weight])
    (wanted,) = torch.autograd.grad(wide(x_BSD.double(), targets_BS), [wide.weight])
    assert ((got.double() - wanted).norm() / wanted.norm()).item() < 1e-2


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_no_more_than_a_chunk_of_logits_exists() -> None:
    wide_vocabulary = Head(D, 1000, chunk_size=4)
    wide_vocabulary.weight.data.normal_()
    x_BSD, targets_BS = torch.randn(1, 64, D, requires_grad=True), torch.zeros(1, 64, dtype=torch.int64)
    with LargestTensor() as largest:
        wide_vocabulary(x_BSD, targets_BS).backward()
    assert largest.elements == 1000 * D  # the weight's gradient; all logits at once would be 64,000
    with torch.no_grad(), ProductCount() as products:
        wide_vocabulary(x_BSD, targets_BS)
    assert products.number == 16  # one a chunk: evaluation pays for no gradient


class ProductsAlive(TorchDispatchMode):
    """The most products with V columns that there are at any time."""

    def __init__(self, n_columns: int) -> None:
        super().__init__()
        self.n_columns, self.most = n_columns, 0
        self._alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.mm.default and result.shape[1] == self.n_columns:
            self._alive.add(result)
            self.most = max(self.most, len(self._alive))
        return result


@pytest.mark.parametrize("gradients", [False, True])
def test_logits_of_one_chunk_are_gone_before_the_next(gradients: bool) -> None:
    module, (x_BSD, targets_BS) = head(4), samples()
    with torch.set_grad_enabled(gradients), ProductsAlive(V) as products:
        module(x_BSD, targets_BS)
    assert products.most == 1


class ProductCount(TorchDispatchMode):
    """Matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.number += function is torch.ops.aten.mm.default
        return function(*args, **(kwargs or {}))


def test_without_gradients_none_are_made() -> None:
    module, (x_BSD, targets_BS) = head(4), samples()
    with torch.no_grad():
        loss = module(x_BSD, targets_BS)
    assert not loss.requires_grad
    assert loss.grad_fn is None
