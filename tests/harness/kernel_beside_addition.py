"""`python -m harness.kernel_beside_addition [cuda]`: parallel/gradient_kernel.py beside torch's addition."""

import sys

import torch

from parallel.gradient_kernel import add


def main(device: str) -> None:
    """Raises AssertionError where they differ, to the bit."""
    generator = torch.Generator().manual_seed(5)
    for shape in ((1,), (2047,), (3, 5, 700), (0, 4)):
        total = torch.randn(shape, generator=generator).to(device)
        gradient = torch.randn(shape, generator=generator).bfloat16().to(device)
        expected = total.clone().add_(gradient)
        add(total, gradient)
        assert torch.equal(total, expected)
    turned = torch.randn(6, 4, generator=generator).bfloat16().to(device).T  # a gradient need not be contiguous
    total = torch.zeros(4, 6, device=device)
    add(total, turned)
    assert torch.equal(total, turned.float())


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cpu")
