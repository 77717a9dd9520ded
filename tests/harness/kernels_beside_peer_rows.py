"""`python -m harness.kernels_beside_peer_rows [cuda]`: the Triton kernels of parallel/peer_row_kernels.py beside
torch's operators, on memory of one device."""

import sys

import torch
from torch import Tensor

from parallel.peer_row_kernels import add_up, find_wanted, take


def main(device: str) -> None:
    """Raises AssertionError where they differ. Parts of sums that are not wanted are NaN where they are read; rows that
    are not wanted are to stay as they are where they would be written."""
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
                for told in (False, True):
                    rows_are_taken(read_RTD, wanted_RT, rank, told)
        wanted_is_found(n_ranks, 20 * n_tokens, device, generator)


def rows_are_taken(x_RTD: Tensor, wanted_RT: Tensor, rank: int, told: bool) -> None:
    """Out of the ranks' memories, each with room for the rows of all. `told`: behind it each says who wants its own."""
    (n_ranks, n_tokens, _), device = x_RTD.shape, x_RTD.device
    n_bytes = -(-x_RTD.nbytes // 256) * 256
    memories = [torch.full((n_bytes + n_ranks * n_tokens,), 255, device=device, dtype=torch.uint8) for _ in x_RTD]
    places = [memory[: x_RTD.nbytes].view(x_RTD.dtype).view_as(x_RTD) for memory in memories]
    for peer, (memory, place, wanted_T) in enumerate(zip(memories, places, wanted_RT, strict=True)):
        place[peer] = x_RTD[peer]
        memory[n_bytes:].view(n_ranks, n_tokens)[rank] = wanted_T
    addresses_R = torch.tensor([memory.data_ptr() for memory in memories], device=device)
    found_RT = torch.full_like(wanted_RT, 3, dtype=torch.uint8) if told else wanted_RT.byte()
    take(addresses_R, found_RT, rank, places[rank].flatten(0, 1), n_bytes if told else None)
    others_R = torch.arange(n_ranks, device=device) != rank
    here_RT = torch.where(others_R[:, None], wanted_RT, True)
    expected_RTD = x_RTD.masked_fill(~here_RT.unsqueeze(2), torch.nan)
    torch.testing.assert_close(places[rank], expected_RTD, rtol=0, atol=0, equal_nan=True)
    if told:
        assert torch.equal(found_RT[others_R], wanted_RT[others_R].byte())
        assert (found_RT[rank] == 3).all()


def wanted_is_found(n_ranks: int, n_tokens: int, device: str, generator: torch.Generator) -> None:
    """Of choices some of which are none, laid out either way."""
    rank_of_E = torch.arange(4 * n_ranks).remainder(n_ranks).to(device, torch.int32)
    choices_TK = torch.randint(-1, 4 * n_ranks, (n_tokens, 3), generator=generator).to(device)
    owners_TK = rank_of_E[choices_TK].masked_fill(choices_TK < 0, -1)
    expected_RT = torch.stack([(owners_TK == rank).any(1) for rank in range(n_ranks)]).byte()
    for choices in (choices_TK, choices_TK.T.contiguous().T):
        found_RT, also_RT = (torch.full_like(expected_RT, 3) for _ in range(2))
        find_wanted(choices, rank_of_E, found_RT, also_RT)
        assert torch.equal(found_RT, expected_RT)
        assert torch.equal(also_RT, expected_RT)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cpu")
