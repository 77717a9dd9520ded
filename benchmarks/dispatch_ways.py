"""The ways that benchmarks/dispatch.py compares: each brings the tokens of a case to their experts, and sums back.

T tokens a rank, K experts a token, D model width, E experts, P and R ranks: a token's own, and one that has experts.
"""

import math
from collections.abc import Sequence
from datetime import timedelta
from functools import cached_property, partial
from typing import Protocol

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from models.permutation import sort_pairs
from parallel.comm import Communicator
from parallel.comm_kind import CommKind
from parallel.torch_internals import SharedMemory

EXPERTS, TOP_K = 64, 6
SUMS = 32
"""Multiprocessors for the kernel that adds up what copy engines brought."""
PATIENCE = timedelta(seconds=30)


class WrongError(Exception):
    """A way brought what it should not have: no refusal, but a defect."""


class Case:
    """Tokens and choices of all ranks; this one is `rank` of `size`."""

    def __init__(
        self, name: str, tokens: int, dim: int, skew: float, device: torch.device, group: ProcessGroup
    ) -> None:
        """Expert e is chosen as often as (1 + e)^-skew says: the first ranks have most to do."""
        self.name, self.device, self.group = name, device, group
        self.rank, self.size = group.rank(), group.size()
        generator = torch.Generator().manual_seed(0)
        likely_E = (1.0 + torch.arange(EXPERTS)) ** -skew
        likely_NE = likely_E.expand(self.size * tokens, EXPERTS)
        choices_NK = torch.multinomial(likely_NE, TOP_K, False, generator=generator)
        self.choices_PTK = choices_NK.view(self.size, tokens, TOP_K).to(device)
        self.x_TD = torch.randn(tokens, dim, generator=generator.manual_seed(1 + self.rank))
        self.x_TD = self.x_TD.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
        self.factor_E = (1.0 + torch.arange(EXPERTS, device=device)) / EXPERTS
        here_PTKR = torch.nn.functional.one_hot(self.choices_PTK // (EXPERTS // self.size), self.size).bool()
        self.pairs_PR = here_PTKR.sum((1, 2))
        self.factor_PTR = (self.factor_E[self.choices_PTK].unsqueeze(-1) * here_PTKR).sum(2)
        self.wanted_PTR = here_PTKR.any(2)

    @property
    def expected_TD(self) -> Tensor:
        """What comes back of this rank's tokens, in float32."""
        return self.x_TD.float() * self.factor_PTR[self.rank].sum(-1, keepdim=True)

    def mb(self, rows_PR: Tensor) -> float:
        """10^6 bytes of the busiest rank, in or out, without what stays."""
        away_PR = rows_PR - rows_PR.diag().diag()
        busiest = torch.maximum(away_PR.sum(0), away_PR.sum(1)).max()
        return float(busiest) * self.x_TD.shape[1] * self.x_TD.element_size() / 1e6


class Transport(Protocol):
    """One way, of one case."""

    mb: float

    def dispatch(self) -> Tensor:
        """What comes of all ranks' tokens."""

    def compute(self, came: Tensor) -> None:
        """What the experts of this rank make of it, where `combine` takes it."""

    def combine(self) -> Tensor:
        """What comes back."""

    def summed(self, back: Tensor) -> Tensor:
        """Of that, the sums of this rank's tokens."""


class Rows:
    """all_to_all as the project does it, behind the exchange of counts."""

    def __init__(self, case: Case, comm: Communicator) -> None:
        self._case, self._comm = case, comm
        self.mb = case.mb(case.pairs_PR)
        self._sorted = [sort_pairs(choices_TK.flatten(), EXPERTS, False) for choices_TK in case.choices_PTK]
        self._pairs = self._sorted[case.rank]
        self._rows_ND = case.x_TD[self._pairs.order_N // TOP_K]
        self._sent = case.pairs_PR[case.rank].tolist()
        self._received = case.pairs_PR[:, case.rank].tolist()
        self._made_ND = torch.empty(0)

    def dispatch(self) -> Tensor:
        return self._exchange(self._rows_ND, self._sent, self._received)

    def compute(self, came: Tensor) -> None:
        case, factors = self._case, []
        for choices_TK, pairs in zip(case.choices_PTK, self._sorted, strict=True):
            expert_N = choices_TK.flatten()[pairs.order_N]
            factors.append(case.factor_E[expert_N[expert_N // (EXPERTS // case.size) == case.rank]])
        self._made_ND = (came * torch.cat(factors).unsqueeze(1)).to(came.dtype)

    def combine(self) -> Tensor:
        return self._exchange(self._made_ND, self._received, self._sent)

    def summed(self, back: Tensor) -> Tensor:
        return back[self._pairs.inverse_N].unflatten(0, (-1, TOP_K)).float().sum(1)

    def _exchange(self, rows_ND: Tensor, sent: list[int], received: list[int]) -> Tensor:
        comm = self._comm
        return comm.wait(comm.start_all_to_all(rows_ND, sent, received, self._case.group, CommKind.ep))


class Gathered:
    """Of all that bring a partial sum of each token from each rank."""

    def __init__(self, case: Case, wanted_alone: bool = False) -> None:
        self._case, self._wanted_alone = case, wanted_alone
        all_PR = torch.full((case.size, case.size), len(case.x_TD), device=case.device)
        self.mb = case.mb(case.wanted_PTR.sum(1) if wanted_alone else all_PR)
        self._partial_PTD = case.x_TD.new_empty(case.size, *case.x_TD.shape)

    def compute(self, came: Tensor) -> None:
        """Rows that nobody wanted are NaN before and after: whoever reads them tells."""
        case = self._case
        came_PTD = came.view_as(self._partial_PTD)
        if self._wanted_alone:
            here_PT = case.wanted_PTR[:, :, case.rank].clone()
            here_PT[case.rank] = True  # its own are there
            if not torch.equal(came_PTD.isnan().all(2), ~here_PT):
                raise WrongError("other rows came")
        self._partial_PTD.copy_(came_PTD * case.factor_PTR[:, :, case.rank].unsqueeze(-1))

    def summed(self, back: Tensor) -> Tensor:
        return back.float()


class Tokens(Gathered):
    """NCCL."""

    def __init__(self, case: Case, comm: Communicator) -> None:
        super().__init__(case)
        self._comm = comm

    def dispatch(self) -> Tensor:
        return self._comm.wait(self._comm.start_all_gather(self._case.x_TD, self._case.group, CommKind.ep))

    def combine(self) -> Tensor:
        partial_ND = self._partial_PTD.flatten(0, 1)
        return self._comm.wait(self._comm.start_reduce_scatter(partial_ND, self._case.group, CommKind.ep))


class Shared:
    """A tensor of each rank, NaN at first, which all others read and write."""

    def __init__(self, shape: Sequence[int], like: Tensor, group: ProcessGroup) -> None:
        """All ranks at once."""
        self._memory = SharedMemory(math.prod(shape) * like.element_size(), like.device, group)
        self.mine = self._memory.mine.view(like.dtype).view(*shape).fill_(math.nan)
        self.of = [self._memory.of(rank, shape, like.dtype) for rank in range(group.size())]

    def meet(self) -> None:
        """Of all ranks, what comes behind on this stream waits for what stands before."""
        self._memory.meet(PATIENCE)


class Memory:
    """What all ways in turn share between ranks, made when it is first asked for, on all ranks at once. One set for
    all: shared memory that is given back and made anew may meet a peer's older memory."""

    def __init__(self, case: Case) -> None:
        self._case, self._shape_PTD = case, (case.size, *case.x_TD.shape)

    @cached_property
    def x(self) -> Shared:
        return Shared(self._case.x_TD.shape, self._case.x_TD, self._case.group)

    @cached_property
    def came(self) -> Shared:
        return Shared(self._shape_PTD, self._case.x_TD, self._case.group)

    @cached_property
    def back(self) -> Shared:
        return Shared(self._shape_PTD, self._case.x_TD, self._case.group)


class OverLinks(Gathered):
    """Of all that bring every token, in shared memory: where it is."""

    def __init__(self, case: Case, memory: Memory, put: bool) -> None:
        super().__init__(case)
        # What is put is shared where it arrives, what is taken where it is taken from.
        self._there, self._home = memory.came if put else memory.x, memory.back
        self._peers = [(case.rank + 1 + step) % case.size for step in range(case.size)]
        """Each rank begins with another, and ends with itself."""
        self._y_TD = torch.empty_like(case.x_TD)
        for shared in (self._there, self._home):
            shared.mine.fill_(math.nan)
        if put:
            self._came_PTD, self._back_PTD = self._there.mine, self._home.mine
            self._from, self._to = [case.x_TD] * case.size, [tensor[case.rank] for tensor in self._there.of]
            self._from_back = list(self._partial_PTD)
            self._to_back = [tensor[case.rank] for tensor in self._home.of]
        else:
            self._there.mine.copy_(case.x_TD)
            self._came_PTD, self._back_PTD = (torch.full_like(self._partial_PTD, math.nan) for _ in range(2))
            self._partial_PTD = self._home.mine
            self._from, self._to = self._there.of, list(self._came_PTD)
            self._from_back = [tensor[case.rank] for tensor in self._home.of]
            self._to_back = list(self._back_PTD)


class Copies(OverLinks):
    """By copy engines; what came back is added up where it lies, this rank's own share uncopied."""

    def __init__(self, case: Case, memory: Memory, put: bool) -> None:
        super().__init__(case, memory, put)
        from parallel.peer_row_kernels import add_up  # Triton comes with torch for CUDA alone

        shares = [self._partial_PTD[rank] if rank == case.rank else self._back_PTD[rank] for rank in range(case.size)]
        all_PT = torch.ones(self._partial_PTD.shape[:2], dtype=torch.uint8, device=case.device)
        self._add_up = partial(add_up, addresses(shares), 0, all_PT, case.rank, self._y_TD, SUMS)

    def dispatch(self) -> Tensor:
        self._there.meet()
        for peer in self._peers:
            self._to[peer].copy_(self._from[peer])
        self._there.meet()
        return self._came_PTD

    def combine(self) -> Tensor:
        self._home.meet()
        for peer in self._peers[:-1]:
            self._to_back[peer].copy_(self._from_back[peer])
        self._home.meet()
        self._add_up()
        return self._y_TD


class TorchsOwn(OverLinks):
    """Taken by copy engines: torch's operators, where both tensors are shared."""

    def __init__(self, case: Case, memory: Memory) -> None:
        super().__init__(case, memory, put=False)

    def dispatch(self) -> Tensor:
        name = self._case.group.group_name
        return self._waited(torch.ops.symm_mem._low_contention_all_gather(self._there.mine, name))

    def combine(self) -> Tensor:
        name, partial_ND = self._case.group.group_name, self._home.mine.flatten(0, 1)
        return self._waited(torch.ops.symm_mem._low_contention_reduce_scatter(partial_ND, "sum", name))

    def _waited(self, tensor: Tensor) -> Tensor:
        waited: Tensor = torch.ops._c10d_functional.wait_tensor(tensor)
        return waited


class Wanted(Gathered):
    """By the library's kernels, on as many multiprocessors as they have programs: to where they lie with their own
    rank, whose rows are copied there."""

    def __init__(self, case: Case, memory: Memory, programs: int) -> None:
        super().__init__(case, wanted_alone=True)
        from parallel.peer_row_kernels import add_up, take

        self._there, self._home, self._y_TD = memory.came, memory.back, torch.empty_like(case.x_TD)
        for shared in (self._there, self._home):
            shared.mine.fill_(math.nan)
        self._came_PTD, self._partial_PTD = self._there.mine, self._home.mine
        wanted_PTR = case.wanted_PTR.byte()
        by_others_PT = wanted_PTR[case.rank].T.contiguous()
        by_me_PT = wanted_PTR[:, :, case.rank].contiguous()
        came_ND = self._came_PTD.flatten(0, 1)
        self._take = partial(take, addresses(self._there.of), by_me_PT, case.rank, came_ND, programs=programs)
        shares = addresses([tensor[case.rank] for tensor in self._home.of])
        self._add_up = partial(add_up, shares, 0, by_others_PT, case.rank, self._y_TD, programs)

    def dispatch(self) -> Tensor:
        self._came_PTD[self._case.rank].copy_(self._case.x_TD)
        self._there.meet()
        self._take()
        self._there.meet()
        return self._came_PTD

    def combine(self) -> Tensor:
        self._home.meet()
        self._add_up()
        self._home.meet()
        return self._y_TD


def addresses(tensors: Sequence[Tensor]) -> Tensor:
    """Of contiguous ones, int64, on their device."""
    assert all(tensor.is_contiguous() for tensor in tensors)
    return torch.tensor([tensor.data_ptr() for tensor in tensors], device=tensors[0].device)
