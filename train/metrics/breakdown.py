"""Where a step's time goes: the buckets that rows of metrics divide it into, and their mean over rows."""

from collections.abc import Mapping, Sequence
from typing import Any

from parallel.comm_kind import CommKind

COMMUNICATION = tuple(kind.value for kind in CommKind)
"""Kinds of communication."""
IN_STEPS = (
    "data_wait",
    "compute_fwd",
    "compute_bwd",
    "compute_opt",
    *(f"exposed_comm/{kind}" for kind in COMMUNICATION),
    "sync_wait",
    "bubble",
)
"""Of steps themselves."""
BUCKETS = (*IN_STEPS, "log", "other")
"""Of a step, in the order of tables and pictures. They exclude each other and fill it: `other` is the rest and may be
negative."""
APART = ("eval", "ckpt_save", "profile")
"""Of what stands between steps, in the same rows."""
STEPS = "time/steps"
"""Key of the number of steps that a row's means are over."""
WALL = "wall"
"""In a row: all of BUCKETS and APART. In a breakdown: all of BUCKETS."""


def row_key(bucket: str) -> str:
    """The key of `bucket`, or of WALL, in a row of metrics: seconds a step, mean over ranks."""
    return f"time/{bucket}_s"


def mean_breakdown(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds a step by bucket, and WALL: the mean over the steps of those `rows` that were divided. What stands apart
    is left out.

    A divided row without a bucket spent nothing in it. Buckets that no row has are left out; {} if no row was divided.
    """
    means = mean_seconds(rows, BUCKETS)
    return means | {WALL: sum(means.values())} if means else {}


def mean_seconds(rows: Sequence[Mapping[str, Any]], buckets: Sequence[str]) -> dict[str, float]:
    """The same of any `buckets`, those that stand apart too, without WALL."""
    divided = [row for row in rows if row_key(WALL) in row]
    n_steps = sum(row.get(STEPS, 1) for row in divided)
    return {
        bucket: sum(row.get(key, 0.0) * row.get(STEPS, 1) for row in divided) / n_steps
        for bucket in buckets
        if any((key := row_key(bucket)) in row for row in divided)
    }


def mean_of(breakdowns: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of several runs' breakdowns, in the same manner."""
    return mean_breakdown([{row_key(bucket): s for bucket, s in one.items()} for one in breakdowns])
