"""A run's rows of metrics, and those of them that its speed and the division of its steps are read from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.config import ConfigError
from train.metrics.jsonl import METRICS_FILE, read_jsonl
from train.metrics.summary import standing_rows, steady_rows


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Of the steps that stand; [] of a run that has logged none.

    Raises:
        ConfigError: if its file holds a line that is no row.
    """
    path = folder / METRICS_FILE
    try:
        rows = standing_rows(read_jsonl(path))
        if not all(isinstance(value, (int, float)) for row in rows for value in row.values()):
            raise TypeError("a value is no number")
    except FileNotFoundError:
        return []
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:  # a 5, a row without train/step, …
        raise ConfigError(f"{path} holds what is no row of metrics: name another run, or mend that file") from error
    return rows


def timed_rows(rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those of the last start's own steps, without the warm-up, as the summary has them: see `steady_rows`.

    Args:
        rows: of the steps that stand.
        settings: the run's config.yaml, plain.

    Raises:
        ConfigError: if that is another version's.
    """
    try:
        return steady_rows(rows, settings["environment"]["resumed_after_step"], settings)
    except KeyError as error:
        raise ConfigError(f"a config.yaml without {error}: another version wrote it; name another run") from error
