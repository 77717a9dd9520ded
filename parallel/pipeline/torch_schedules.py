"""The tables that torch.distributed.pipelining generates, in our actions.

Its runtime is not used: a chain of neighbours, which cannot run DualPipe and runs a pair one after the other.
"""

from collections.abc import Iterable

from parallel.pipeline.action import Action, Cell, Op, Pair

TORCH_NAMES = {
    "interleaved_1f1b": "Interleaved1F1B",
    "interleaved_zero_bubble": "InterleavedZeroBubble",
    "zbv": "ZBVZeroBubble",
    "dualpipev": "DualPipeV",
}


def torch_rows(name: str, n_ranks: int, n_stages: int, n_micro_batches: int) -> tuple[tuple[Cell, ...], ...]:
    """What each rank computes, in order; idle slots are left out, for they follow from what waits for what.

    `name` is one of TORCH_NAMES.
    """
    # Here, for it takes half a second, and every command reads a config that may name a schedule.
    from parallel.torch_internals import torch_pipeline_order

    order = torch_pipeline_order(TORCH_NAMES[name], n_ranks, n_stages, n_micro_batches)
    return tuple(tuple(_cell(slot) for slot in row) for row in order)


def _cell(slot: Iterable[tuple[str, int, int]]) -> Cell:
    actions = [Action(Op(op), 0, stage, micro_batch) for op, stage, micro_batch in slot]
    return actions[0] if len(actions) == 1 else Pair(*actions)
