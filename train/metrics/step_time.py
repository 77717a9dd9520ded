"""Where a step's time went, over all ranks: the rows `time/*`.

Buckets exclude each other and fill the wall: what no bucket holds is `other`, signed. All are seconds a step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from parallel.clock.phase_clock import OF_A_STEP, Phase, Waited, Window
from parallel.clock.split import split_waits
from parallel.comm import Communicator
from train.metrics.breakdown import APART, BUCKETS, STEPS, WALL, row_key


@dataclass(frozen=True)
class StepTime:
    """Makes a window of this rank's clock into rows."""

    comm: Communicator
    pipelined: bool
    """Whether the world has several pipeline stages."""

    def own(self, window: Window, usual_step_s: float | None = None) -> dict[str, float]:
        """This rank's seconds by bucket. All ranks call it together.

        With `usual_step_s` the steps were traced: what each took above that is `profile`'s, and their buckets shrink to
        the usual together.
        """
        split = split_waits(window.waits, self.comm, self.pipelined)
        seconds = {phase.value: window.phase_s[phase] for phase in OF_A_STEP}
        for wait in window.waits:
            seconds[wait.phase.value] -= wait.seconds
        for kind, exposed_s in split.exposed_s.items():
            seconds[f"exposed_comm/{kind.value}"] = exposed_s
        seconds |= {"sync_wait": split.sync_s, "bubble": split.bubble_s}
        apart = {phase.value: window.phase_s[phase] for phase in Phase if phase not in OF_A_STEP}
        in_steps = sum(seconds.values())
        if usual_step_s is not None and in_steps > usual_step_s * window.steps:
            usual = usual_step_s * window.steps
            seconds = {name: value * usual / in_steps for name, value in seconds.items()}
            apart[Phase.profile.value] += in_steps - usual
        seconds |= apart
        seconds["other"] = window.wall_s - sum(seconds.values())
        return seconds


def sums_by_kind(waits: Sequence[Waited]) -> dict[str, float]:
    """Seconds of all waits of each kind that there is."""
    sums: dict[str, float] = {}
    for wait in waits:
        sums[wait.kind.value] = sums.get(wait.kind.value, 0.0) + wait.seconds
    return sums


def time_row(by_rank: Mapping[str, list[float]], steps: int) -> dict[str, float]:
    """Of ranks' seconds by bucket over `steps` steps: a step's mean over ranks (`time/…_s`), its maximum
    (`time_max/…_s`) and whose that was (`time_max_rank/…`), where any rank spent time in it; the wall; and which rank
    the others wait for, with the part of their mean `sync_wait` that it does not share."""
    row: dict[str, float] = {STEPS: steps}
    for name in (*BUCKETS, *APART):
        values = [seconds / steps for seconds in by_rank[name]]
        if not any(values):
            continue
        largest = max(values)
        row[row_key(name)] = sum(values) / len(values)
        if len(values) > 1:
            row[f"time_max/{name}_s"] = largest
            row[f"time_max_rank/{name}"] = values.index(largest)
    row[row_key(WALL)] = sum(row.get(row_key(name), 0.0) for name in (*BUCKETS, *APART))
    # Who holds the others up waits least itself, in all groups together; who waits for it may hold up others in turn.
    waited = [sync + bubble for sync, bubble in zip(by_rank["sync_wait"], by_rank["bubble"], strict=True)]
    mean = sum(by_rank["sync_wait"]) / len(waited)
    if len(waited) > 1 and mean > 0:
        slow = waited.index(min(waited))
        row["time/slow_rank"] = slow
        row["time/slow_rank_share"] = max(0.0, 1 - by_rank["sync_wait"][slow] / mean)
    return row
