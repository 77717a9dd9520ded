"""The tables of a page."""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby

from launch.report.axes import colour
from launch.report.losses import LossDifference
from launch.report.run_view import RunView
from train.metrics.breakdown import WALL

COLUMNS = ("tokens/s", "step, ms", "IQR", "exposed", "MFU", "GiB", "loss", "held-out", "goodput", "steps", "ranks")


def numbers(runs: Sequence[RunView], order: Sequence[int]) -> str:
    """A row for each run, in `order`; the colours are the charts'."""
    head = "".join(f'<th class="number">{escape(column)}</th>' for column in COLUMNS)
    rows = [f'<tr><th class="run">run</th>{head}<th>bound by</th></tr>']
    for i in order:
        cells = "".join(f'<td class="number">{cell}</td>' for cell in _numbers_of(runs[i]))
        bound = escape(runs[i].summary.bound_by or "–")
        rows.append(f'<tr><td class="run">{_dot(i)}{escape(runs[i].label)}</td>{cells}<td>{bound}</td></tr>')
    return _table(rows)


def _numbers_of(run: RunView) -> list[str]:
    summary = run.summary
    exposed = f"{sum(run.exposed.values()) / run.breakdown[WALL]:.1%}" if run.breakdown else "–"
    return [
        f"{summary.tokens_per_sec:,.0f}",
        f"{summary.step_time_s * 1e3:,.1f}",
        f"{summary.step_time_iqr_s * 1e3:,.1f}",
        exposed,
        "–" if summary.mfu is None else f"{summary.mfu:.1%}",
        "–" if summary.peak_memory_gib is None else f"{summary.peak_memory_gib:.2f}",
        f"{summary.loss_last:.4f}",
        "–" if summary.eval_loss is None else f"{summary.eval_loss:.4f}",
        f"{run.books.ettr:.1%}" if run.books and run.books.total else "–",
        f"{summary.steps:,}",
        str(summary.world_size),
    ]


def missing(points: Sequence[tuple[str, str, str]]) -> str:
    """Points of a sweep that are not done, and why."""
    rows = ["<tr><th>point</th><th></th><th>why</th></tr>"]
    for name, state, why in points:
        rows.append(f"<tr><td>{escape(name)}</td><td>{escape(state)}</td><td>{escape(why)}</td></tr>")
    return _table(rows)


def loss_findings(findings: Sequence[LossDifference]) -> str:
    """A row for each run but the first."""
    rows = []
    for i, finding in enumerate(findings, start=1):
        kind = "bad" if finding.flagged else "muted" if finding.other_job else "good"
        label = f"{_dot(i)}{escape(finding.label)}"
        rows.append(f'<tr><td>{label}</td><td class="{kind}">{escape(finding.sentence)}</td></tr>')
    return _table(rows)


def config_differences(runs: Sequence[RunView], by_key: Mapping[str, Sequence[str]]) -> str:
    """A row for each run, a column for each key."""
    groups = [key.partition(".")[0] for key in by_key]
    wide = "".join(f'<th colspan="{len(list(same))}">{escape(group)}</th>' for group, same in groupby(groups))
    narrow = "".join(f"<th>{escape(key.partition('.')[2])}</th>" for key in by_key)
    rows = [f'<tr><th class="run" rowspan="2">run</th>{wide}</tr><tr>{narrow}</tr>']
    for i, run in enumerate(runs):
        cells = "".join(f"<td>{escape(values[i])}</td>" for values in by_key.values())
        rows.append(f'<tr><td class="run">{_dot(i)}{escape(run.label)}</td>{cells}</tr>')
    return _table(rows)


def _dot(index: int) -> str:
    return f'<span class="dot" style="background:{colour(index)}"></span>'


def _table(rows: Sequence[str]) -> str:
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'
