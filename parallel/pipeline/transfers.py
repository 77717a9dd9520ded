"""Sends and receives for a schedule, in an order that cannot deadlock.

A communicator of two ranks matches messages in order: both must name them in the same one. The table is run on paper,
and every message put, on both of its ranks, at the moment when its sender has computed it:

    rank 0   F0 │ F1    │ F2                      │ send of the activation of micro-batch 0
    rank 1      │ (recv) F0 …                     │ its receive, started then, waited for by the F0 that needs it

Moments are ordered alike for all ranks, so each pair of ranks agrees; and at its moment a message needs nothing that
comes later, so even sends and receives that block do not deadlock: of all messages not yet through, the first one finds
both of its ranks there, for what they have before it needs earlier ones alone (overlap.pipeline_p2p=false).
"""

from typing import NamedTuple

from parallel.pipeline.action import Action, Cell, Op, Schedule, Transfer, actions_of
from parallel.pipeline.simulator import Costs, simulate


class _Message(NamedTuple):
    moment: float
    gradient: bool
    chain: int
    stage: int
    micro_batch: int
    sender: int
    receiver: int


def with_transfers(schedule: Schedule) -> tuple[tuple[Cell | Transfer, ...], ...]:
    """The rows of `schedule` with what its ranks send each other; a hand-over on one rank is none."""
    spans = simulate(schedule, Costs()).spans
    messages = sorted(
        message
        for row in spans
        for span in row
        for action in actions_of(span.cell)
        if (message := _message(action, span.end, schedule))
    )
    rows: list[tuple[Cell | Transfer, ...]] = []
    for rank, row in enumerate(spans):
        ours = [m for m in messages if rank in (m.sender, m.receiver)]
        # A cell that starts at the moment comes after it, one that started before stays before.
        merged: list[tuple[float, int, Cell | Transfer]] = [(m.moment, 0, _transfer(m, rank)) for m in ours]
        merged += [(span.start, 1, span.cell) for span in row]
        rows.append(tuple(item for *_, item in sorted(merged, key=lambda entry: entry[:2])))  # stable
    return tuple(rows)


def _message(action: Action, moment: float, schedule: Schedule) -> _Message | None:
    """What `action` makes that another rank needs."""
    if action.op is Op.weight_backward:
        return None
    gradient = action.op is not Op.forward
    to_stage = action.stage + (-1 if gradient else 1)
    if not 0 <= to_stage < schedule.n_stages:
        return None
    ranks = schedule.rank_of_stage[action.chain]
    sender, receiver = ranks[action.stage], ranks[to_stage]
    if sender == receiver:
        return None
    return _Message(moment, gradient, action.chain, to_stage, action.micro_batch, sender, receiver)


def _transfer(message: _Message, rank: int) -> Transfer:
    send = rank == message.sender
    peer = message.receiver if send else message.sender
    return Transfer(send, message.gradient, message.chain, message.stage, message.micro_batch, peer)
