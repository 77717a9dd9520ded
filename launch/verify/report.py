"""What `switchyard verify` prints."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from launch.verify.verdict import Verdict
from parallel.traffic.tally import Traffic

COLUMNS = ("loss", "norm", "gradient", "weight")


def print_verdicts(verdicts: Sequence[Verdict], impossible: Mapping[str, str], console: Console) -> None:
    """A row for each strategy, the steps of a single one, and what is wrong, in words.

    `impossible`: why others were not run, by name.
    """
    first = verdicts[0].job.scaled
    console.print(
        f"{first.model.name}, scaled down, {first.train.steps} steps on random tokens in float64 (engines of other "
        "libraries: float32): largest relative differences from one process",
        highlight=False,
    )
    if left_out := sorted({word for verdict in verdicts for word in verdict.job.not_compared}):
        console.print(f"not compared, since that dtype has no such thing: {' '.join(left_out)}", highlight=False)
    console.print(_strategies(verdicts))
    if len(verdicts) == 1 and verdicts[0].comparison:
        console.print(_steps(verdicts[0]))
        if verdicts[0].traffic:
            console.print(_traffic(verdicts[0]))
    for verdict in verdicts:
        said = verdict.failure or (verdict.comparison and verdict.comparison.first)
        if said:
            console.print(f"{verdict.job.name}: {said}", style="red", markup=False, highlight=False, soft_wrap=True)
        if verdict.elsewhere:
            console.print(verdict.elsewhere, style="yellow", markup=False, highlight=False, soft_wrap=True)
    for name, why in impossible.items():
        console.print(f"not run: {name}: {why}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    run = [verdict for verdict in verdicts if not verdict.elsewhere]
    wrong = sum(not verdict.equal for verdict in run)
    total = f"{len(run)} layout{'s' * (len(run) != 1)}"
    said = f"{wrong} of {total} failed or differ from one process" if wrong else f"{total} equal to one process"
    console.print(said, style="red" if wrong else "green", highlight=False)


def _strategies(verdicts: Sequence[Verdict]) -> Table:
    table = Table()
    table.add_column("strategy", no_wrap=True)
    table.add_column("ranks", justify="right")
    table.add_column("layout")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    table.add_column("counts")
    table.add_column("traffic", justify="right")
    table.add_column("s", justify="right")
    table.add_column("", no_wrap=True)
    for verdict in verdicts:
        job, comparison = verdict.job, verdict.comparison
        numbers = ["–"] * (len(COLUMNS) + 2)
        if comparison:
            steps = comparison.steps
            worst = (max(getattr(step, name) for step in steps) for name in ("loss", "grad_norm", "gradient", "weight"))
            counts = _counts(all(step.counts_equal for step in steps))
            numbers = [*(f"{number:.1e}" for number in worst), counts, _total(verdict)]
        table.add_row(job.name, str(job.n_ranks), job.layout, *numbers, f"{verdict.seconds:.1f}", _word(verdict))
    return table


def _word(verdict: Verdict) -> str:
    if verdict.elsewhere:
        return "[yellow]not here[/]"
    if verdict.comparison is None:
        return "[red]failed[/]"
    return "[green]equal[/]" if verdict.equal else "[red]differs[/]"


def _steps(verdict: Verdict) -> Table:
    assert verdict.comparison is not None
    table = Table()
    table.add_column("step", justify="right")
    for name in COLUMNS:
        table.add_column(name)
    table.add_column("counts")
    for number, step in enumerate(verdict.comparison.steps, start=1):
        table.add_row(
            str(number),
            f"{step.loss:.1e}",
            f"{step.grad_norm:.1e}",
            f"{step.gradient:.1e} {step.gradient_name}",
            f"{step.weight:.1e} {step.weight_name}",
            _counts(step.counts_equal),
        )
    return table


def _traffic(verdict: Verdict) -> Table:
    """Of the last step and all ranks, channel by channel, and what the config predicts."""
    table = Table()
    for name in ("communication", "operation"):
        table.add_column(name)
    for name in ("ranks of a group", "calls", "bytes put in", "calls predicted", "bytes predicted"):
        table.add_column(name, justify="right")
    measured, predicted = ({row[:3]: row[3:] for row in traffic.rows()} for traffic in _both(verdict))
    for channel in sorted(measured.keys() | predicted.keys()):
        is_so, was_said = measured.get(channel, (0, 0)), predicted.get(channel, (0, 0))
        style = None if is_so == was_said else "yellow"
        table.add_row(*map(str, channel), *(f"{number:,}" for number in (*is_so, *was_said)), style=style)
    return table


def _total(verdict: Verdict) -> str:
    """All that a step's ranks put into collectives, and whether the config foretells it."""
    if verdict.traffic is None:
        return "its own"
    measured, predicted = _both(verdict)
    as_predicted = measured.rows() == predicted.rows()
    total = sum(measured.n_bytes.values())
    return f"{total / 2**20:.2f} MiB" if as_predicted else f"[yellow]{total / 2**20:.2f} MiB, not as predicted[/]"


def _both(verdict: Verdict) -> tuple[Traffic, Traffic]:
    assert verdict.traffic is not None
    assert verdict.predicted is not None
    return verdict.traffic, verdict.predicted


def _counts(equal: bool) -> str:
    return "equal" if equal else "differ"
