"""`python -m harness.kernels_beside_peer_rows [cuda]`: the Triton kernels of parallel/peer_row_kernels.py beside
torch's operators, on memory of one device."""

import sys

import torch

from parallel.peer_row_kernels import add_up, take


def main(device: str) -> None:
    """Raises AssertionError where they differ. Rows that are not wanted are NaN where they are read, and are to stay as
    they are where they would be written."""
    generator = torch.Generator().manual_seed(6)
    dtypes = (torch.float32, torch.float64, torch.bfloat16)
    cases = ((2, 9, 24), (4, 40, 64), (3, 1, 2048), (2, 700, 32), (5, 33, 7))
    for n_ranks, n_tokens, dim in cases if device == "cuda" else cases[:3]:
        for dtype in dtypes if device == "cuda" else dtypes[:2]:  # the interpreter cuts off where a GPU rounds
            for share, rank in ((0.6, n_ranks - 1), (0.0, 0), (1.0, 1)):
                wanted_RT = torch.rand(n_ranks, n_tokens, generator=generator).to(device) < share
                of_ranks = [
                    torch.randn(3 + n_tokens, dim, generator=generator).to(device, dtype) for _ in range(n_ranks)
                ]
                addresses_R = torch.tensor([x.data_ptr() for x in of_ranks], device=device)
                read_RTD = torch.stack([x[3:] for x in of_ranks])
                exact_TD = (read_RTD.double() * wanted_RT.unsqueeze(2)).sum(0)
                for x, wanted_T in zip(of_ranks, wanted_RT, strict=True):
                    x[:3] = torch.nan
                    x[3:].masked_fill_(~wanted_T.unsqueeze(1), torch.nan)
                y_TD = torch.full((n_tokens, dim), torch.nan, device=device, dtype=dtype)
                add_up(addresses_R, 3, wanted_RT.view(torch.uint8), rank, y_TD)
                torch.testing.assert_close(y_TD, exact_TD.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-5)
                firsts_R = addresses_R + 3 * dim * dtype.itemsize
                if firsts_R.remainder(16).any():  # tokens' rows begin where memory does
                    continue
                y_ND = torch.full((n_ranks * n_tokens, dim), -1.0, device=device, dtype=dtype)
                take(firsts_R, wanted_RT.view(torch.uint8), rank, y_ND)
                taken_RTD = read_RTD.masked_fill(~wanted_RT.unsqueeze(2), -1.0)
                assert torch.equal(y_ND.view_as(taken_RTD), taken_RTD)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cpu")
