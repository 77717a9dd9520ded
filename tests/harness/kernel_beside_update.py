"""`python -m harness.kernel_beside_update [cuda]`: the Triton kernel of AdamW beside train/adamw_update.py."""

import sys

import torch

from parallel.halves import join_bits, split_bits
from train import adamw_kernel, adamw_update
from train.adamw_update import Hyper, scalars

HYPER = Hyper(lr=1e-2, beta1=0.9, beta2=0.999, eps=1e-8, decay=0.1)


def main(device: str) -> None:
    """Raises AssertionError where they differ."""
    generator = torch.Generator().manual_seed(3)
    for moments in (torch.float32, torch.bfloat16):
        for grads in (torch.float32, torch.bfloat16):
            for n in (1, 1023, 5000):
                p = torch.randn(n, generator=generator)
                grad = (0.1 * torch.randn(n, generator=generator)).to(grads).to(device)
                m = (0.01 * torch.randn(n, generator=generator)).to(moments)
                v = (0.01 * torch.rand(n, generator=generator)).to(moments)
                before = [x.to(device) for x in (p, m, v)]
                expected, got, still = ([x.clone() for x in before] for _ in range(3))
                copies = [torch.zeros(n, dtype=torch.bfloat16, device=device) for _ in range(2)]
                step, clip = torch.tensor(7.0, device=device), torch.tensor(0.37, device=device)
                known = scalars(HYPER, step, clip, torch.tensor(False, device=device))
                adamw_update.update(*expected, grad, HYPER, known, 3, copies[0])
                adamw_kernel.update(*got, grad, HYPER, known, 3, copies[1])
                torch.testing.assert_close(got[0], expected[0], rtol=1e-6, atol=1e-6)
                # The interpreter cuts off what a GPU rounds.
                near = 2**-7 if device == "cpu" else 2**-8
                torch.testing.assert_close(copies[1], got[0].bfloat16(), rtol=near, atol=0)
                # Rounded by other noise, a moment in bfloat16 is one of the same two neighbours.
                near = 1e-6 if moments is torch.float32 else 2**-7
                for ours, theirs in zip(got[1:], expected[1:], strict=True):
                    torch.testing.assert_close(ours.float(), theirs.float(), rtol=near, atol=1e-9)
                known = scalars(HYPER, step, clip, torch.tensor(True, device=device))
                adamw_kernel.update(*still, grad, HYPER, known, 3, copies[1].fill_(3.0))
                assert (copies[1] == 3.0).all()
                assert all(torch.equal(x, y) for x, y in zip(still, before, strict=True))
    mean_of_rounding(device)
    halves(device)


def halves(device: str) -> None:
    """Moved in halves, a master has the bits that it has when it is moved whole; so has one that is left out."""
    generator = torch.Generator().manual_seed(5)
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 3.4e38, -3.4e38, 1e-40])
    for moments in (torch.float32, torch.bfloat16):
        for n in (7, 5000):
            whole = torch.cat((odd, torch.randn(n - len(odd), generator=generator))).to(device)
            m = (0.01 * torch.randn(n, generator=generator)).to(moments).to(device)
            v = (0.01 * torch.rand(n, generator=generator)).to(moments).to(device)
            grad = (0.1 * torch.randn(n, generator=generator)).bfloat16().to(device)
            copy, expected_copy, joined = whole.bfloat16(), whole.bfloat16(), torch.empty_like(whole)
            low, expected_low = (torch.empty(n, dtype=torch.int16, device=device) for _ in range(2))
            split_bits(whole, copy, low)
            nowhere = torch.empty_like(whole)
            nowhere.untyped_storage().resize_(0)
            for left_out in (False, True, False):
                known = scalars(HYPER, torch.tensor(7.0, device=device), None, torch.tensor(left_out, device=device))
                theirs, ours = ([x.clone() for x in (m, v)] for _ in range(2))
                adamw_kernel.update(whole, *theirs, grad, HYPER, known, 3)
                adamw_kernel.update(nowhere, *ours, grad, HYPER, known, 3, copy, low)
                split_bits(whole, expected_copy, expected_low)
                assert torch.equal(copy.view(torch.int16), expected_copy.view(torch.int16))
                assert torch.equal(low, expected_low)
                join_bits(joined, copy, low)
                assert torch.equal(joined[1:], whole[1:])
                assert all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))


def mean_of_rounding(device: str) -> None:
    """Of many alike, moments that no bfloat16 holds: right in the mean, to five deviations."""
    n, keeps = 40_000, Hyper(0.0, 0.5, 0.5, 1e-8, 0.0)
    p, grad = torch.zeros(n, device=device), torch.full((n,), 1.0 + 2**-9, device=device)
    m, v = (torch.ones(n, dtype=torch.bfloat16, device=device) for _ in range(2))
    known = scalars(keeps, torch.tensor(3.0, device=device), None, None)
    adamw_kernel.update(p, m, v, grad, keeps, known, 1)
    for kept, exact in ((m, 1.0 + 2**-10), (v, (1 + (1 + 2**-9) ** 2) / 2)):
        part = (exact - 1.0) / 2**-7
        assert set(kept.float().unique().tolist()) == {1.0, 1.0 + 2**-7}
        off = kept.float().mean().item() - exact
        assert abs(off) < 5 * 2**-7 * (part * (1 - part) / n) ** 0.5, off
        # Each its own noise: as many are rounded like a neighbour, or one further off, as chance has it.
        for apart in (1, 2, 3, 4, 256, 1024):
            alike = (kept[apart:] == kept[:-apart]).float().mean().item() - (part**2 + (1 - part) ** 2)
            assert abs(alike) < 0.02, (apart, alike)
    up_m, up_v = ((moment > 1).float().mean().item() for moment in (m, v))
    both = (m == v).float().mean().item() - (up_m * up_v + (1 - up_m) * (1 - up_v))
    assert abs(both) < 0.02, both


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cpu")
