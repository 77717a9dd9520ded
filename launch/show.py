"""`switchyard show RUN`: what a run did, from its folder alone."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from models.config import ConfigError
from train.metrics.jsonl import read_jsonl

BARS = "▁▂▃▄▅▆▇█"


def show(words: Sequence[str]) -> int:
    """Print the table and the loss curve of the run folder `words[0]`; works on a run that is still going or dead.

    Raises:
        ConfigError: if there is no run.
    """
    if len(words) != 1:
        raise ConfigError("show takes one run folder: switchyard show runs/NAME")
    folder = Path(words[0]).expanduser()
    if not (folder / "metrics.jsonl").exists():
        raise ConfigError(f"{folder} holds no run: name a folder with a metrics.jsonl in it")
    rows = read_jsonl(folder / "metrics.jsonl")
    console = Console()
    return 0


def curve(values: Sequence[float], width: int) -> str:
    """`values` as one line of bars, at most `width` of them, each the mean of its part."""
    if not values:
        return ""
    n_bars = min(width, len(values))
    edges = [round(i * len(values) / n_bars) for i in range(n_bars + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((mean - low) * scale)] for mean in means)
