"""What `switchyard sweep` prints at its end."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from launch.sweep.point_job import State
from launch.sweep.results import Result
from train.metrics.breakdown import WALL, row_key
from train.metrics.label import labelled

STYLES = {State.failed.value: "red", State.refused.value: "yellow", State.cut_off.value: "yellow"}


def print_sweep(results: Sequence[Result], console: Console) -> None:
    """A row for each point, the fastest first, then those without numbers; and why they have none."""
    table = Table()
    table.add_column("point", no_wrap=True)
    for column in ("tokens/s", "step, ms", "IQR", "exposed", "MFU", "GiB", "loss", "goodput", "starts"):
        table.add_column(column, justify="right")
    for row in by_speed(results):
        if row["tokens_per_sec"] is None:
            state = Text(row["state"], style=STYLES.get(row["state"], ""))
            table.add_row(row["point"], state, *[""] * 7, str(row["starts"] or ""))
            continue
        exposed_s = row["exposed_comm_s"]
        table.add_row(
            labelled(row["point"], row["label"]),
            f"{row['tokens_per_sec']:,.0f}",
            f"{row['step_time_s'] * 1e3:,.1f}",
            f"{row['step_time_iqr_s'] * 1e3:,.1f}",
            "–" if exposed_s is None else f"{exposed_s / row[row_key(WALL)]:.1%}",
            *(_percent(row["mfu"]), "–" if row["peak_memory_gib"] is None else f"{row['peak_memory_gib']:.2f}"),
            f"{row['loss_last']:.4f}",
            *(_percent(row["ettr"]), str(row["starts"])),
        )
    console.print(table)
    for row in results:
        if row["why"]:
            text = f"{row['point']}: {row['why']}"
            console.print(text, style=STYLES.get(row["state"], "yellow"), markup=False, highlight=False, soft_wrap=True)


def by_speed(results: Sequence[Result]) -> list[Result]:
    """The fastest first, those without numbers last."""
    return sorted(results, key=lambda row: -(row["tokens_per_sec"] or 0.0))


def _percent(part: float | None) -> str:
    return "–" if part is None else f"{part:.1%}"
