"""`python -m harness.kernel_beside_addition [cuda]`: parallel/gradient_kernel.py beside torch's addition and norms."""

import sys

import torch

from parallel.gradient_kernel import LARGE, add, norms
from parallel.torch_internals import norms_in_float64
from parallel.zero1 import add_up


def main(device: str) -> None:
    """Raises AssertionError where they differ, to the bit."""
    generator = torch.Generator().manual_seed(5)
    for shape in ((1,), (2047,), (3, 5, 700), (0, 4)):
        first, second, third = (torch.randn(shape, generator=generator).bfloat16().to(device) for _ in range(3))
        total = add(first, second, torch.float32)
        assert torch.equal(total, add_up(first, second, torch.float32))
        expected = total.clone().add_(third)
        assert add(total, third, torch.float32) is total
        assert torch.equal(total, expected)
    turned = torch.randn(6, 4, generator=generator).bfloat16().to(device).T  # a gradient need not be contiguous
    assert torch.equal(add(turned, turned, torch.float32), 2 * turned.float())
    sizes, dtypes = (LARGE + 12345, 17, LARGE), (torch.bfloat16, torch.float32)
    tensors = [torch.randn(n, generator=generator).to(dtype).to(device) for n in sizes for dtype in dtypes]
    tensors += [tensors[0].float() * 1e30, tensors[0] * 1e-30, torch.zeros_like(tensors[0])]
    exact = norms_in_float64([tensor.double() for tensor in tensors])
    for ours, expected in zip(norms(tensors), exact, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-7, atol=0)
    for what in (float("nan"), float("inf")):
        tensors[0][5] = what
        assert not norms(tensors[:1])[0].isfinite()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cpu")
