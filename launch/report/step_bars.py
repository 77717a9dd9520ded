"""Where steps went: all of it in one picture, and the communication that compute waited for in another."""

from collections.abc import Sequence

from launch.bars_picture import BarStyle, DividedBar, draw_bars
from launch.bench.picture import COLOURS, Bar, draw
from launch.report.run_view import RunView
from train.metrics.breakdown import COMMUNICATION, WALL

EXPOSED = BarStyle(
    "milliseconds a step, mean over ranks",
    {kind: COLOURS[f"exposed_comm/{kind}"] for kind in COMMUNICATION},
    lambda ms: f"{ms:.3g} ms",
)


def step_bars(runs: Sequence[RunView]) -> str:
    """The picture that `switchyard bench` draws, of these."""
    return draw([_bar(run) for run in runs], "step time; runs by tokens/s")


def exposed_bars(runs: Sequence[RunView]) -> str | None:
    """The picture; None if no run waited for communication, or none was divided."""
    bars = []
    for run in runs:
        if run.breakdown:
            parts = [(kind, seconds * 1e3) for kind, seconds in run.exposed.items()]
            whole = sum(ms for _, ms in parts)
            label = f"{whole:.3g} ms, {whole / 1e3 / run.breakdown[WALL]:.1%} of its step"
            bars.append(DividedBar(run.label, label, parts, whole))
    if not any(bar.parts for bar in bars):
        return None
    return draw_bars(bars, "communication that compute waited for, by kind", EXPOSED)


def _bar(run: RunView) -> Bar:
    mfu = f", MFU {run.summary.mfu:.1%}" if run.summary.mfu else ""
    label = f"{run.summary.tokens_per_sec:,.0f} tokens/s{mfu}"
    return Bar(run.label, label, run.breakdown, run.summary.step_time_s)
