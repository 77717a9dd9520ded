"""Which runs the words of `switchyard report` name: folders of runs, or ones that hold many, as a sweep's does."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from launch.report.run_view import RunView, labels
from launch.sweep.results import JSON_FILE
from models.config import ConfigError
from train.data.atomic_json import read_json

OURS = {"point", "state", "why", "tokens_per_sec"}
"""Keys of each point in a sweep's results."""


def find_runs(folders: Sequence[Path]) -> list[RunView]:
    """The runs in `folders` that have logged a step; of a sweep in the order of its points. One that cannot be read is
    left out, with a line on standard error, where there are others.

    Raises:
        ConfigError: for a folder that is no run's and holds none, and where no run can be read or has logged a step.
    """
    states = {run: state for folder in folders for run, state in _runs_of(folder)}
    logged: list[RunView] = []
    unread: list[ConfigError] = []
    for run, label in zip(states, labels(list(states)), strict=True):
        try:
            if read := RunView.read(run, label, states[run]):
                logged.append(read)
        except ConfigError as error:
            unread.append(error)
    if not logged and unread:
        raise unread[0]
    if not logged:
        raise ConfigError(f"no run in {', '.join(map(str, folders))} has logged a step: name folders of runs that have")
    for why in unread:
        print(f"switchyard: left out: {why}", file=sys.stderr)
    return logged


def not_done(folders: Sequence[Path]) -> list[tuple[str, str, str]]:
    """Name, state and reason of the points of sweeps that have no numbers of their end."""
    missing = []
    for folder in folders:
        for point in _points(folder):
            if point["tokens_per_sec"] is None:
                missing.append((point["point"], point["state"], point["why"] or ""))
    return missing


def commands(folders: Sequence[Path]) -> list[str]:
    """Of the sweeps among `folders`, what was typed."""
    return [read["command"] for folder in folders if (read := _results(folder))]


def _runs_of(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Each with its state, if a sweep says one."""
    if (folder / "config.yaml").exists():
        yield folder, None
        return
    here = folder / "runs" if (folder / "runs").is_dir() else folder
    inside = sorted(path.parent for path in here.glob("*/config.yaml"))
    if not inside:
        said = "there is no such folder" if not folder.exists() else "it is no run's, and holds none"
        raise ConfigError(f"{folder}: {said}; name folders of runs, or one that holds them")
    known = [(here / point["point"], point["state"]) for point in _points(folder) if here / point["point"] in inside]
    # A sweep's folder may hold points of other words: these are the ones that its last words named.
    yield from known or [(run, None) for run in inside]


def _points(folder: Path) -> list[dict[str, Any]]:
    read = _results(folder)
    return read["points"] if read else []


def _results(folder: Path) -> dict[str, Any] | None:
    """A sweep's; None if there are none, or a file of that name that somebody else wrote."""
    read = read_json(folder / JSON_FILE)
    if not read or not isinstance(read.get("command"), str) or not isinstance(points := read.get("points"), list):
        return None
    return read if all(isinstance(point, dict) and point.keys() >= OURS for point in points) else None
