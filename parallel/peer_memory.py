"""What ranks of one host take out of each other's memory: rows of tokens, and partial sums of them.

    compute    x is made │                                                       │ y is read
    side                 └→ x is laid where peers see it │ all meet │ y is taken ┘

Taken, not put: y is memory like any other, and what is shared holds nothing longer than its exchange. So one place for
rows and one for sums serve all layers. The two take turns, on all ranks: who has met for one has taken all that it
wanted of the other, which may be written again. A meeting at the end, before y is read, is thus not needed.

T tokens of a rank, R ranks, N = R·T, D model width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from parallel.torch_internals import SharedMemory
from parallel.world import TIMEOUT

ALIGNED = 256
"""Bytes, of which the place for rows is a multiple."""


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


class _Room(NamedTuple):
    """Of each rank: a place for rows [T, D], and behind it one for sums [N, D]."""

    shared: SharedMemory
    n_bytes: int
    """For rows."""
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

    def take(self, x_TD: Tensor, wanted_RT: Callable[[], Tensor], *read_for_it: Tensor) -> tuple[Tensor, Taking]:
        """Begin to bring the rows of all ranks, [N, D]; those that are not wanted here are undefined.

        Args:
            x_TD: this rank's.
            wanted_RT: called on the side stream, gives uint8 there; of it alone, so that it is given back to it.
            read_for_it: what `wanted_RT` reads of others.
        """
        from parallel.peer_row_kernels import take  # Triton comes with torch for CUDA alone

        room = self._room(x_TD.nbytes, x_TD.device)
        y_ND = x_TD.new_empty(self._size * len(x_TD), x_TD.shape[1])
        with self._aside(x_TD, *read_for_it) as taking:
            room.shared.of(self._rank, x_TD.shape, x_TD.dtype).copy_(x_TD)
            wanted = wanted_RT()
            self._meet(room, rows=True)
            take(room.rows_R, wanted, self._rank, y_ND)
        return y_ND, taking

    def add_up(self, partial_ND: Tensor, wanted_RT: Callable[[], Tensor]) -> tuple[Tensor, Taking]:
        """Begin to bring the sums of this rank's tokens, [T, D], over the ranks that have a part of them.

        Args:
            partial_ND: this rank's parts, of the tokens of all; those that nobody wants may hold anything.
            wanted_RT: of this rank's tokens; see `take`.
        """
        from parallel.peer_row_kernels import add_up

        place_ND = self.place_for_sums(partial_ND, len(partial_ND))
        room, n_tokens = self._rooms[-1], len(partial_ND) // self._size
        y_TD = partial_ND.new_empty(n_tokens, partial_ND.shape[1])
        with self._aside(partial_ND) as taking:
            if partial_ND.data_ptr() != place_ND.data_ptr():
                place_ND.copy_(partial_ND)
            wanted = wanted_RT()
            self._meet(room, rows=False)
            add_up(room.sums_R, self._rank * n_tokens, wanted, self._rank, y_TD)
        return y_TD, taking

    def place_for_sums(self, like: Tensor, n_rows: int) -> Tensor:
        """Where partial sums [N, D] may be made that `add_up` is given next: then nobody copies them. From when the
        rows that they are made of have arrived."""
        shape = n_rows, like.shape[1]
        room = self._room(n_rows // self._size * shape[1] * like.element_size(), like.device)
        return room.shared.of(self._rank, shape, like.dtype, room.n_bytes)

    def _room(self, n_bytes: int, device: torch.device) -> _Room:
        """With place for rows of so many bytes; where there is none, the host waits for all ranks."""
        if not self._rooms or self._rooms[-1].n_bytes < n_bytes:
            n_bytes = -(-n_bytes // ALIGNED) * ALIGNED
            shared = SharedMemory((1 + self._size) * n_bytes, device, self._group)
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
