"""Activation recomputation: backward computes again what forward did not keep (Chen et al. 2016).

A block's attention, its shared experts (or dense feed-forward) and its routed ones are recomputed apart, each just
before its own backward; dispatch and combine stand outside, so no row travels twice. `selective` keeps the results of
matrix products and of attention, which cost most to make, and computes the rest again (Korthikanti et al. 2022).
Collectives inside the parts (tensor-parallel gathers, the counts of a batch-level balancing loss) are repeated by both,
on all ranks alike.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from models.transformer import Transformer
from parallel.block_methods import block_methods
from parallel.config import Recompute

EXPENSIVE = ("mm", "addmm", "bmm", "_scaled_mm", "_grouped_mm", "grouped_mm", "grouped_product")
"""Names of operators whose results `selective` keeps; and every scaled_dot_product kernel."""


def recompute_parts(stage: Transformer, what: Recompute, shared_in_halves: bool, to_the_end: bool = False) -> None:
    """Have `stage`'s parts recompute, in place. No hook of FSDP2 may be inside: in backward it does other things than
    in forward, which `selective` takes for another computation. So shared and routed experts, which may be sharded
    apart, are parts of their own; and no row may travel inside, or it would travel twice.

    `to_the_end`: also what comes after the last result that backward needs, in parts that hold a collective begun and
    not yet waited for at that place, which would otherwise be left so.
    """
    if what is Recompute.none:
        return
    again: Callable[..., Any] = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    if to_the_end:
        again = partial(again, early_stop=False)
    if what is Recompute.selective:
        again = partial(again, context_fn=_keep_products)
    for method in block_methods(stage, shared_in_halves):
        method.wrap(partial(partial, again))


def _keep_products() -> Any:
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    name = operator.overloadpacket.__name__ if isinstance(operator, torch._ops.OpOverload) else ""
    keep = name in EXPENSIVE or "scaled_dot_product" in name
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
