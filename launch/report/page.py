"""Runs beside each other as one HTML page: nothing is fetched, and it opens from disk. It is well-formed XML, too."""

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from launch.report import tables
from launch.report.differences import differences
from launch.report.expert_load import expert_load
from launch.report.expert_map import Loads, expert_loads, expert_map
from launch.report.goodput import goodput_bars, waterfalls
from launch.report.loss_chart import legend, loss_chart
from launch.report.losses import compare_losses
from launch.report.pipelines import PipelineDrawing, pipelines
from launch.report.run_view import RunView
from launch.report.speed_and_memory import speed_and_memory
from launch.report.step_bars import exposed_bars, step_bars
from launch.report.style import CSS, SCRIPT

OPEN_AT_FIRST = 1
"""Waterfalls that are not folded away."""


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    anchor: str
    title: str
    note: str
    """How to read it."""
    body: str


def page(title: str, runs: Sequence[RunView], commands: Sequence[str], missing: Sequence[tuple[str, str, str]]) -> str:
    """The page of at least one run. `commands`: what made them, if it is known; `missing`: points of sweeps that are
    not done, with state and reason."""
    order = sorted(range(len(runs)), key=lambda i: (not runs[i].is_done, -runs[i].summary.tokens_per_sec))
    sections = list(_sections(runs, order, missing))
    links = "".join(f'<a href="#{one.anchor}">{escape(one.title)}</a>' for one in sections)
    body = "".join(
        f'<section id="{one.anchor}"><h2>{escape(one.title)}</h2>'
        f'<p class="note">{escape(one.note)}</p>{one.body}</section>'
        for one in sections
    )
    typed = "".join(f"<pre><code>{escape(command)}</code></pre>" for command in commands)
    verdict = _verdict([runs[i] for i in order if runs[i].is_done])
    head = f'<meta charset="utf-8"/><meta name="viewport" content="width=device-width"/><title>{escape(title)}</title>'
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}<style>{CSS}</style></head><body>'
        f'<h1>{escape(title)}</h1><p class="muted">{escape(_machine(runs))}</p>{typed}'
        f'<p class="lead">{verdict}</p><nav>{links}</nav>{body}<script>{SCRIPT}</script></body></html>\n'
    )


def _machine(runs: Sequence[RunView]) -> str:
    devices = dict.fromkeys(f"{run.summary.world_size} × {run.summary.device}" for run in runs)
    torch = dict.fromkeys(f"torch {run.torch}" for run in runs)
    return ", ".join([*devices, *torch, f"written {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"])


def _verdict(fastest: Sequence[RunView]) -> str:
    """Who of those that are done is fastest, and by how much; the measurements' own spread says whether that is
    anything. Steps of fewer or more tokens are taken as long as the first's."""
    if not fastest:
        return "No point is done."
    first = fastest[0]
    said = f"<b>{escape(first.label)}</b>: {first.summary.tokens_per_sec:,.0f} tokens/s"
    if len(fastest) == 1:
        return said
    second, last = fastest[1], fastest[-1]
    tokens = first.summary.tokens_per_sec * first.summary.step_time_s
    ahead = tokens / second.summary.tokens_per_sec - first.summary.step_time_s
    # As a part of the step that it is of: the spread of a step of as many tokens.
    spread = max(
        tokens / one.summary.tokens_per_sec * one.summary.step_time_iqr_s / one.summary.step_time_s
        for one in (first, second)
    )
    either = ", so either may be the faster" if ahead <= spread else ""
    beside = f"; their steps spread by {spread * 1e3:,.1f} ms{either}" if spread else ""
    return (
        f"Fastest is {said}, {first.summary.tokens_per_sec / last.summary.tokens_per_sec:.2f} times the slowest "
        f"({escape(last.label)}). Its step is {ahead * 1e3:,.1f} ms shorter than as many tokens take "
        f"{escape(second.label)}{beside}."
    )


def _sections(
    runs: Sequence[RunView], order: Sequence[int], missing: Sequence[tuple[str, str, str]]
) -> Iterator[Section]:
    fastest = [runs[i] for i in order]
    note = "Medians over steps without the warm-up, and their spread (IQR). Exposed: the part that waits for messages."
    if not all(run.is_done for run in runs):
        note += " Last those that are not done: medians over the steps that they came to."
    yield Section("numbers", "Runs", note, tables.numbers(runs, order))
    if missing:
        yield Section("missing", "Points that are not done", "", tables.missing(missing))
    note = "Mean over ranks and over the steps without the warm-up."
    yield Section("steps", "Where a step goes", note, _drawn(step_bars(fastest)))
    if drawn := exposed_bars(fastest):
        note = "What of each kind is not hidden behind compute."
        yield Section("exposed", "Exposed communication", note, _drawn(drawn))
    if drawn := speed_and_memory(runs):
        note = "Up and to the left is better; the dotted line joins the runs that no other beats in both."
        yield Section("memory", "Tokens/s against memory", note, drawn)
    if drawn := loss_chart(runs):
        note = "Runs that learnt the same share a line, in their colours by turns."
        found = compare_losses(runs)
        beside = f"<p>Beside {escape(runs[0].label)}:</p>{tables.loss_findings(found)}" if found else ""
        yield Section("losses", "Loss", note, f"{legend(runs)}{drawn}{beside}")
    if bars := goodput_bars(fastest):
        folded = [_folded(*one, i < OPEN_AT_FIRST) for i, one in enumerate(waterfalls(fastest))]
        note = "Every rank-second since the job was launched, over all its starts."
        yield Section("goodput", "Goodput", note, _drawn(bars) + "".join(folded))
    if drawings := pipelines(runs):
        body = "".join(
            f"<h3>{escape(one.title)}</h3><p>Idle on paper {one.bubble:.1%}{escape(_measured(one))}.</p>"
            f'<div class="wide schedule">{one.svg}</div>'
            for one in drawings
        )
        note = "On paper: a forward takes as long as either half of a backward, and messages no time."
        yield Section("pipelines", "Pipelines", note, body)
    yield from _experts(runs)
    if by_key := differences([run.settings for run in runs]):
        note = "Only what is not the same in all runs."
        yield Section("differences", "Configurations", note, tables.config_differences(runs, by_key))


def _experts(runs: Sequence[RunView]) -> Iterator[Section]:
    """Maps of every expert, one for all runs that routed the same; and of runs without them what their rows hold."""
    routed: list[tuple[Loads, list[str]]] = []
    for run in runs:
        if loads := expert_loads(run.folder):
            same = next((labels for known, labels in routed if known == loads), None)
            if same is None:
                routed.append((loads, [run.label]))
            else:
                same.append(run.label)
    if routed:
        note = "A line an expert: what it took, over the mean of its layer. Runs that routed the same share a map."
        every = [run.label for run in runs]
        said = ["All runs" if labels == every and len(every) > 1 else ", ".join(labels) for _, labels in routed]
        maps = [
            f"<p>{escape(of)}:</p>{expert_map(one, 'expert load')}" for of, (one, _) in zip(said, routed, strict=True)
        ]
        yield Section("experts", "Expert load", note, "".join(maps))
    elif drawn := expert_load(runs):
        note = "The fullest expert's; measure.expert_load=true writes every one's. 1 is even."
        yield Section("experts", "Expert load", note, drawn)


def _drawn(picture: str) -> str:
    """A picture that elsewhere is a file."""
    return f'<div class="wide drawn">{picture}</div>'


def _folded(label: str, picture: str, is_open: bool) -> str:
    opened = ' open=""' if is_open else ""
    return f"<details{opened}><summary>{escape(label)}</summary>{_drawn(picture)}</details>"


def _measured(drawing: PipelineDrawing) -> str:
    """What of it was idle in fact, run by run."""
    found = [f"{label} {bubble:.1%}" for label, bubble in drawing.measured.items()]
    return f"; measured of a step: {', '.join(found)}" if found else f": {', '.join(drawing.labels)}"
