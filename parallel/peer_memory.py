"""What ranks of one host take out of each other's memory: rows of tokens, and partial sums of them.

    compute    x is made │                                                                          │ y is read
    side                 └→ x, and who wants it, are laid where peers see them │ all meet │ others' are taken ┘

Taken, not put. One place for rows, with who wants them, and one for sums serve all layers: y is that place, beside
others' rows this rank's own, and is to be read before rows leave again. The two take turns, on all ranks: who has met
for one has taken all that it wanted of the other, which may be written again. A meeting at the end, before y is read,
is thus not needed. On the side little is launched: beside products that fill a GPU each kernel waits until a block of
theirs ends.

T tokens of a rank, R ranks, N = R·T, K experts per token, E experts, D model width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from parallel.torch_internals import SharedMemory
from parallel.world import TIMEOUT

ALIGNED = 256
"""Bytes, of which each place is a multiple."""


class Taking:
    """Rows on their way. `kept`: what is read meanwhile, and must not be given away before."""

    def __init__(self, *kept: Tensor) -> None:
        self._kept = kept
        self.ended: torch.cuda.Event | None = None
        """None on a CPU, where what is enqueued is done."""

    def wait(self) -> None:
        """Hold the current stream until they are there."""
        if self.ended is not None:
            torch.cuda.current_stream().wait_event(self.ended)
        self._kept = ()

    def is_completed(self) -> bool:
        """Whether they are there."""
        return self.ended is None or self.ended.query()


class Wanted(NamedTuple):
    """Which tokens are wanted where, uint8: written and read on the side stream, and not of its memory, so that each
    exchange keeps them."""

    by_me_RT: Tensor
    """Of others' tokens those that have an expert here."""
    by_others_RT: Tensor
    """Of this rank's tokens those that each rank has an expert of."""


class Chosen(NamedTuple):
    """What that is found out from."""

    experts_TK: Tensor
    """Of this rank's tokens, int64; -1: none."""
    rank_of_E: Tensor
    """Where each expert is, int32."""


class _Room(NamedTuple):
    """Of each rank: a place for rows [N, D] and who wants its own [R, T], and behind it one for sums [N, D]."""

    shared: SharedMemory
    n_bytes: int
    """Of each place."""
    rows_R: Tensor
    """int64: the address of each rank's."""
    sums_R: Tensor


class PeerMemory:
    """Of the ranks of a group, which all make the same calls in the same order, with as many tokens."""

    def __init__(self, group: ProcessGroup) -> None:
        """`take` and `add_up` must take turns."""
        self._group, self._rank, self._size = group, group.rank(), group.size()
        self._rooms: list[_Room] = []
        """The last is in use; smaller ones before it are kept."""
        self._side: torch.cuda.Stream | None = None
        self._rows_are_there: bool | None = None

    def take(self, x_TD: Tensor, wanted: Wanted, chosen: Chosen | None = None) -> tuple[Tensor, Taking]:
        """Begin to bring the rows of all ranks, [N, D], until rows leave again; those that are not wanted here are
        undefined.

        Args:
            x_TD: this rank's.
            wanted: where they are.
            chosen: from this it is found out first; None: it has been.
        """
        from parallel.peer_row_kernels import find_wanted, take  # Triton comes with torch for CUDA alone

        y_ND = self.place_for_rows(x_TD)
        room, behind = self._rooms[-1], _aligned(y_ND.nbytes)
        with self._aside(x_TD, *wanted, *(chosen or ())) as taking:
            y_ND.chunk(self._size)[self._rank].copy_(x_TD)
            if chosen is not None:
                told_RT = room.shared.of(self._rank, wanted.by_others_RT.shape, torch.uint8, behind)
                find_wanted(*chosen, wanted.by_others_RT, told_RT)
            self._meet(room, rows=True)
            take(room.rows_R, wanted.by_me_RT, self._rank, y_ND, None if chosen is None else behind)
        return y_ND, taking

    def add_up(self, partial_ND: Tensor, wanted: Wanted) -> tuple[Tensor, Taking]:
        """Begin to bring the sums of this rank's tokens, [T, D], over the ranks that have a part of them.

        Args:
            partial_ND: this rank's parts, of the tokens of all; those that nobody wants may hold anything.
            wanted: of this rank's tokens.
        """
        from parallel.peer_row_kernels import add_up

        place_ND = self.place_for_sums(partial_ND, len(partial_ND))
        room, n_tokens = self._rooms[-1], len(partial_ND) // self._size
        y_TD = partial_ND.new_empty(n_tokens, partial_ND.shape[1])
        with self._aside(partial_ND, *wanted) as taking:
            if partial_ND.data_ptr() != place_ND.data_ptr():
                place_ND.copy_(partial_ND)
            self._meet(room, rows=False)
            add_up(room.sums_R, self._rank * n_tokens, wanted.by_others_RT, self._rank, y_TD)
        return y_TD, taking

    def place_for_rows(self, x_TD: Tensor) -> Tensor:
        """Where `take` will bring them, [N, D]."""
        shape = self._size * len(x_TD), x_TD.shape[1]
        return self._room(len(x_TD), x_TD).shared.of(self._rank, shape, x_TD.dtype)

    def place_for_sums(self, like: Tensor, n_rows: int) -> Tensor:
        """Where partial sums [N, D] may be made that `add_up` is given next: then nobody copies them. From when the
        rows that they are made of have arrived."""
        room = self._room(n_rows // self._size, like)
        return room.shared.of(self._rank, (n_rows, like.shape[1]), like.dtype, room.n_bytes)

    def _room(self, n_tokens: int, like: Tensor) -> _Room:
        """With place for as many rows; where there is none, the host waits for all ranks."""
        n_rows = self._size * n_tokens
        n_bytes = _aligned(n_rows * like.shape[1] * like.element_size()) + _aligned(n_rows)
        if not self._rooms or self._rooms[-1].n_bytes < n_bytes:
            device = like.device
            shared = SharedMemory(2 * n_bytes, device, self._group)
            rows, sums = (
                [shared.of(rank, (1,), torch.uint8, before).data_ptr() for rank in range(self._size)]
                for before in (0, n_bytes)
            )
            rows_R, sums_R = (torch.tensor(some, dtype=torch.int64, device=device) for some in (rows, sums))
            self._rooms.append(_Room(shared, n_bytes, rows_R, sums_R))
        return self._rooms[-1]

    @contextmanager
    def _aside(self, *kept: Tensor) -> Iterator[Taking]:
        """What is enqueued inside waits for what was so before, on the stream that is current outside; not that for
        it."""
        taking = Taking(*kept)
        if not kept[0].is_cuda:
            yield taking
            return
        if self._side is None:
            self._side = torch.cuda.Stream(kept[0].device, priority=-1)
        self._side.wait_stream(torch.cuda.current_stream(kept[0].device))
        with torch.cuda.stream(self._side):
            yield taking
            taking.ended = self._side.record_event()

    def _meet(self, room: _Room, rows: bool) -> None:
        assert self._rows_are_there is not rows, "rows and sums take turns"
        self._rows_are_there = rows
        room.shared.meet(TIMEOUT)


def _aligned(n_bytes: int) -> int:
    """At least so many."""
    return -(-n_bytes // ALIGNED) * ALIGNED
