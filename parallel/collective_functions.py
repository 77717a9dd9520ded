"""Collectives that gradients flow through: each one's backward is its mirror image.

    forward     all_gather        reduce_scatter     all_to_all (sent, received)
    backward    reduce_scatter    all_gather         all_to_all (received, sent)

All along dimension 0, by the Communicator, which counts and awaits them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from parallel.comm import Communicator
from parallel.comm_kind import CommKind


@dataclass(frozen=True)
class Among:
    """Between which ranks, what for, and who counts it."""

    comm: Communicator
    group: ProcessGroup
    kind: CommKind


def all_gather(x: Tensor, among: Among) -> Tensor:
    """[n, …] of every rank as [ranks·n, …]; each rank's gradients of all of it are partial, and summed."""
    y: Tensor = _AllGather.apply(x, among)
    return y


def reduce_scatter(x: Tensor, among: Among) -> Tensor:
    """The sum over ranks of [ranks·n, …], this rank's [n, …] of it."""
    y: Tensor = _ReduceScatter.apply(x, among)
    return y


def all_to_all(x: Tensor, sent: Sequence[int], received: Sequence[int], among: Among) -> Tensor:
    """`sent[r]` neighbouring rows to each rank r; the rows received, in rank order."""
    y: Tensor = _AllToAll.apply(x, sent, received, among)
    return y


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, among: Among) -> Tensor:
        ctx.among = among
        return among.comm.wait(among.comm.start_all_gather(x, among.group, among.kind))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        among = ctx.among
        return among.comm.wait(among.comm.start_reduce_scatter(grad, among.group, among.kind)), None


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, among: Among) -> Tensor:
        ctx.among = among
        return among.comm.wait(among.comm.start_reduce_scatter(x, among.group, among.kind))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        among = ctx.among
        return among.comm.wait(among.comm.start_all_gather(grad, among.group, among.kind)), None


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sent: Sequence[int], received: Sequence[int], among: Among) -> Tensor:
        ctx.sent, ctx.received, ctx.among = sent, received, among
        return among.comm.wait(among.comm.start_all_to_all(x, sent, received, among.group, among.kind))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        among = ctx.among
        back = among.comm.start_all_to_all(grad, ctx.received, ctx.sent, among.group, among.kind)
        return among.comm.wait(back), None, None, None
