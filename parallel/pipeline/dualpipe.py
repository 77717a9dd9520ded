"""DualPipe: two copies of the model run against each other (DeepSeek-V3, arXiv 2412.19437, section 3.2.1).

Rank r of P holds stage r of chain 0, which runs down the ranks, and stage P-1-r of chain 1, which runs up. Half of the
micro-batches enter at each end. After warm-up every rank has a forward of one chain and a backward of the other in
hand at any time, which need nothing of each other: one cell, in which each hides the other's communication.

    rank 0   F0 F0 F0  F0 F1  …  F0&B1 F1&B0  F0&B1 F1&B0  …  B1 B0  …        P = 4
    rank 3   F1 F1 F1  F1 F0  …  F1&B0 F0&B1  F1&B0 F0&B1  …  B0 B1  …        the mirror image

With h = min(r, P-1-r), H = P/2, and X, Y the chain of this rank's nearer end and the other one:

    1   2(H-h-1) ×  F(X)
    2   h+1      ×  F(X), F(Y)
    3   H-h-1    ×  I(Y), W, F(Y)              a backward is split where its weight half can fill a gap
    4   M/2-P+h+1 × F(X)&B(Y), F(Y)&B(X)       the first of the two middle ranks' cells is not joined: nothing to hide
    5   H-h-1    ×  B(Y), F(Y)&B(X)
    6   h+1      ×  B(Y), B(X)                 the second half of them split: I now, W later
    7   H-h-1    ×  W, I(X)
    8   h+1      ×  W
"""

from collections import deque

from parallel.pipeline.action import Action, Cell, Op, Pair


def dualpipe_rows(n_ranks: int, n_micro_batches: int) -> tuple[tuple[Cell, ...], ...]:
    """What each rank computes, in order, for an even number of ranks and an even number of micro-batches >= 2·ranks."""
    return tuple(_Row(rank, n_ranks, n_micro_batches).build() for rank in range(n_ranks))


class _Row:
    """One rank's cells, appended in order; each chain's forwards and backwards count their own micro-batches."""

    def __init__(self, rank: int, n_ranks: int, n_micro_batches: int) -> None:
        self._rank, self._n_ranks, self._half_batch = rank, n_ranks, n_micro_batches // 2
        self._near = 0 if rank < n_ranks // 2 else 1
        self._next: dict[tuple[str, int], int] = {}
        self._put_off: deque[Action] = deque()
        self._cells: list[Cell] = []

    def build(self) -> tuple[Cell, ...]:
        half = self._n_ranks // 2
        h = min(self._rank, self._n_ranks - 1 - self._rank)
        near, far = self._near, 1 - self._near
        for _ in range(2 * (half - h - 1)):
            self._forward(near)
        for _ in range(h + 1):
            self._forward(near)
            self._forward(far)
        for _ in range(half - h - 1):
            self._backward(far, split=True)
            self._weight()
            self._forward(far)
        for i in range(self._half_batch - self._n_ranks + h + 1):
            if i == 0 and h == half - 1:
                self._forward(near)
                self._backward(far)
            else:
                self._pair(near, far)
            self._pair(far, near)
        for _ in range(half - h - 1):
            self._backward(far)
            self._pair(far, near)
        split = False
        for i in range(h + 1):
            split = split or (i == (h + 1) // 2 and h % 2 == 1)
            self._backward(far, split)
            split = split or (i == (h + 1) // 2 and h % 2 == 0)
            self._backward(near, split)
        for _ in range(half - h - 1):
            self._weight()
            self._backward(near, split=True)
        for _ in range(h + 1):
            self._weight()
        return tuple(self._cells)

    def _take(self, op: Op, chain: int) -> Action:
        count_as = "F" if op is Op.forward else "B"
        number = self._next.get((count_as, chain), 0)
        self._next[count_as, chain] = number + 1
        stage = self._rank if chain == 0 else self._n_ranks - 1 - self._rank
        return Action(op, chain, stage, chain * self._half_batch + number)

    def _forward(self, chain: int) -> None:
        self._cells.append(self._take(Op.forward, chain))

    def _backward(self, chain: int, split: bool = False) -> None:
        action = self._take(Op.input_backward if split else Op.backward, chain)
        self._cells.append(action)
        if split:
            self._put_off.append(action._replace(op=Op.weight_backward))

    def _pair(self, forward_chain: int, backward_chain: int) -> None:
        self._cells.append(Pair(self._take(Op.forward, forward_chain), self._take(Op.backward, backward_chain)))

    def _weight(self) -> None:
        self._cells.append(self._put_off.popleft())
