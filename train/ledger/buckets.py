"""The vocabulary of the books: every rank-second is in one of these buckets (DESIGN, 6)."""

from collections.abc import Mapping

from train.ledger.tiles import UNDIVIDED
from train.metrics import breakdown

OUTSIDE = ("queue", "down", "detect")
"""Submitted to a queue, not started yet; between two attempts; progress has ended, the processes are not gone yet."""
START_UP = ("init_process", "init_dist", "init_model", "ckpt_load", "warmup_compile")
COMPUTE = ("compute_fwd", "compute_bwd", "compute_opt")
EXPOSED = "exposed_comm/"
IN_STEPS = (*breakdown.IN_STEPS, UNDIVIDED)
"""Of steps that stay, waits included."""
LOST = "lost_work/"
LOST_WORK = tuple(
    LOST + cause for cause in ("crash", "hang", "preempt", "fenced", "nan", "ckpt_corrupt", "interrupt", "unsaved")
)
"""Steps that were taken back, and the partial one at a death, by why. unsaved: it ended well, and saved nothing."""
SKIPPED = "skipped_update"
BETWEEN = (*breakdown.APART, "log", "shutdown", "in_progress", "other")
"""in_progress: of an attempt that goes on, since the last that its ranks wrote. other: the residual, signed."""
ORDER = (*OUTSIDE, *START_UP, *LOST_WORK, SKIPPED, *BETWEEN, *IN_STEPS)

OTHER_ALARM = 0.01
"""Of all rank-seconds: above it the residual is an error of the books."""


def is_of_steps(bucket: str) -> bool:
    """Whether time in it is a step's."""
    return bucket in IN_STEPS or bucket.startswith(EXPOSED)


def in_order(buckets: Mapping[str, int]) -> dict[str, int]:
    """The same in the vocabulary's order: all outside steps, and of steps those that are there; unknown ones last."""
    known = {name: buckets.get(name, 0) for name in ORDER if name in buckets or not is_of_steps(name)}
    return known | {name: ns for name, ns in buckets.items() if name not in known}
