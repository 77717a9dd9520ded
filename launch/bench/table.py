"""What `switchyard bench` prints."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from launch.bench.ceilings import Ceilings
from launch.bench.counts import count_of
from launch.bench.result import PointResult
from launch.bench.roofline import Line
from train.metrics.breakdown import BUCKETS, WALL
from train.metrics.verdict import TracedStep


def print_results(results: Sequence[PointResult], console: Console) -> None:
    """A row for each point, in their order, where its time went, what bounds it, and why others failed."""
    console.print(_numbers(results))
    divided = [result for result in results if result.breakdown]
    if divided:
        console.print(_breakdowns(divided))
    for result in results:
        if result.bound_by:
            say(console, f"{result.title}: bound by {result.bound_by}")
    print_failures(results, console)


def print_counts(results: Sequence[PointResult], console: Console) -> None:
    """What one step of each point does, in counts that no noise moves; nothing if none was counted."""
    if not results:
        return
    table = Table(title="counts of one step", title_justify="left")
    table.add_column("point", no_wrap=True)
    columns = ("kernels", "kernels_a_layer", "host_waits", "graphs", "graph_breaks", "collectives")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    table.add_column("bytes by collective", justify="right")
    for result in results:
        counts = [count_of(result.counts, name) for name in columns]
        said = {name: n for name, n in result.counts.items() if name.startswith("bytes/")}
        by_collective = [f"{name.removeprefix('bytes/').replace('/', ' ')} {n:,}" for name, n in said.items()]
        plain = ("–" if count is None else f"{count:,}" for count in counts)
        table.add_row(result.title, *plain, "\n".join(by_collective) or "–")
    console.print(table)


def print_failures(results: Sequence[PointResult], console: Console) -> None:
    """Of each point that has one, the first, with the last lines of its log."""
    for result in results:
        for failure in result.failures[:1]:
            failed = f"{len(result.failures)} of {result.n_jobs} jobs failed"
            say(console, f"{result.point.name}: {failed}, exit code {failure.exit_code}:", style="red")
            for line in failure.last_lines:
                say(console, f"    {line}")


def print_roofline(
    name: str, lines: Sequence[Line], notes: Sequence[str], trace: TracedStep | None, console: Console
) -> None:
    """The work of one point's step beside what the machine can do, and all its kernels."""
    table = Table(title=f"{name}: a step of one rank beside this machine's ceilings", title_justify="left")
    table.add_column("", no_wrap=True)
    for column in ("work", "kernels, ms", "rate", "ceiling", "of it"):
        table.add_column(column, justify="right")
    for line in lines:
        unit = f"{line.unit}/s"
        table.add_row(
            line.category.replace("_", " "),
            f"{line.work:,.3g} {line.unit}",
            ms(line.kernel_s),
            f"{line.rate:,.3g} {unit}" if line.rate else "–",
            f"{line.ceiling:,.3g} {unit}" if line.ceiling else "–",
            f"{line.of_ceiling:.0%}" if line.of_ceiling else "–",
        )
    console.print(table)
    for note in notes:
        say(console, note, style="yellow")
    if trace is None:
        say(console, "no trace: what its kernels reach of that is seen with trace=true, on a GPU", style="yellow")
        return
    kernels = sorted(trace.kernel_s.items(), key=lambda item: -item[1])
    say(
        console,
        "kernels, ms: " + ", ".join(f"{category.replace('_', ' ')} {ms(seconds)}" for category, seconds in kernels),
    )
    waited = f"{ms(trace.host_gaps_s)} of it in {trace.n_host_gaps:,} waits for a launch"
    say(console, f"device idle {ms(trace.idle_s)} of {ms(trace.span_s)} ms, {waited}")


def print_bus(ceilings: Ceilings | None, bus: dict[str, float], console: Console) -> None:
    """What the machine can do between its ranks."""
    if ceilings:
        say(console, f"{ceilings.device}: attention forward alone {ceilings.attention_forward_tflops:,.3g} TFLOP/s")
    if bus:
        rates = ", ".join(f"{name.removesuffix('_gbs')} {rate:,.3g}" for name, rate in bus.items())
        say(console, f"bus bandwidth between ranks, GB/s: {rates}")


def _numbers(results: Sequence[PointResult]) -> Table:
    table = Table()
    table.add_column("point", no_wrap=True)
    for column in ("tokens/s", "least – most", "step, ms", "IQR", "MFU", "GiB", "rounds"):
        table.add_column(column, justify="right")
    for result in results:
        speed, step, mfu, memory = map(result.spread, ("tokens_per_sec", "step_time_s", "mfu", "peak_memory_gib"))
        counted = f"{len(result.summaries)} of {len(result.rounds)}"
        if speed is None or step is None:
            table.add_row(result.point.name, "[red]failed[/]" if result.failures else "–", *[""] * 5, counted)
            continue
        table.add_row(
            result.title,
            f"{speed.median:,.0f}",
            f"{speed.least:,.0f} – {speed.most:,.0f}",
            ms(step.median),
            ms(step.iqr),
            f"{mfu.median:.1%}" if mfu else "–",
            f"{memory.median:.2f}" if memory else "–",
            f"[red]{counted}[/]" if result.failures else counted,
        )
    return table


def _breakdowns(results: Sequence[PointResult]) -> Table:
    """Milliseconds a step, mean over ranks, of the buckets that some point has time in."""
    table = Table(title="where a step goes, ms, mean over ranks and rounds", title_justify="left")
    table.add_column("point", no_wrap=True)
    there = [bucket for bucket in BUCKETS if any(result.breakdown.get(bucket) for result in results)]
    for bucket in (*there, WALL):
        table.add_column(bucket.replace("/", " ").replace("_", " "), justify="right")
    for result in results:
        table.add_row(result.title, *(ms(result.breakdown.get(bucket, 0.0)) for bucket in (*there, WALL)))
    return table


def ms(seconds: float | None) -> str:
    """Milliseconds; a dash for what was not measured."""
    return "–" if seconds is None else f"{seconds * 1e3:,.1f}"


def say(console: Console, text: str, style: str | None = None) -> None:
    """A line that no table wraps, to be copied."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
