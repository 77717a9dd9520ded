"""`switchyard show RUN`: what a run did, from its folder alone."""

import os
from collections.abc import Sequence
from itertools import pairwise
from math import isfinite
from pathlib import Path

from rich.console import Console

from launch.run_summary import read_summary
from models.config import ConfigError
from train.metrics.jsonl import METRICS_FILE, read_jsonl
from train.metrics.summary import standing_rows
from train.run_folder import read_config

BARS = "▁▂▃▄▅▆▇█"


def show(words: Sequence[str]) -> int:
    """Print the table and the loss curve of the run folder `words[0]`, finished, going or dead.

    Raises:
        ConfigError: if there is no run, or it has not logged a step yet.
    """
    if len(words) != 1:
        raise ConfigError("show takes one run folder: switchyard show runs/NAME")
    folder = Path(os.path.expanduser(words[0])).resolve()
    for name in ("config.yaml", METRICS_FILE):
        if not (folder / name).exists():
            raise ConfigError(f"{folder} has no {name}: name the folder of a run that has logged a step")
    rows = standing_rows(read_jsonl(folder / METRICS_FILE))
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    if not losses:
        raise ConfigError(f"{folder} has logged no step yet: try again in a moment")
    summary = read_summary(folder, rows, read_config(folder / "config.yaml"))
    console = Console()
    console.print(summary.table(), markup=False)
    console.print(f"loss {losses[0]:.3f} {curve(losses, console.width - 20)} {losses[-1]:.3f}", markup=False)
    return 0


def curve(values: Sequence[float], width: int) -> str:
    """`values` as one line of bars, at most `width` of them, each the mean of its part, × where that is no number."""
    n_bars = min(max(1, width), len(values))
    edges = [round(i * len(values) / n_bars) for i in range(n_bars + 1)] if values else []
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    finite = [mean for mean in means if isfinite(mean)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((mean - low) * scale)] if isfinite(mean) else "×" for mean in means)
