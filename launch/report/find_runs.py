"""Which runs the words of `switchyard report` name: folders of runs, or ones that hold many, as a sweep's does."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from launch.report.run_view import RunView, labels
from models.config import ConfigError
from train.data.atomic_json import read_json

RESULTS_FILE = "results.json"
"""Of a sweep."""


def find_runs(folders: Sequence[Path]) -> list[RunView]:
    """The runs in `folders` that have logged a step; of a sweep in the order of its points.

    Raises:
        ConfigError: for a folder that is no run's and holds none, and where no run has logged a step.
    """
    found = list(dict.fromkeys(run for folder in folders for run in _runs_of(folder)))
    read = [RunView.read(run, label) for run, label in zip(found, labels(found), strict=True)]
    if logged := [run for run in read if run]:
        return logged
    raise ConfigError(f"no run in {', '.join(map(str, folders))} has logged a step: name folders of runs that have")


def without_numbers(folders: Sequence[Path]) -> list[tuple[str, str, str]]:
    """Name, state and reason of the points of sweeps that have no numbers."""
    missing = []
    for folder in folders:
        for point in _points(folder):
            if point.get("tokens_per_sec") is None:
                missing.append((point["point"], point["state"], point["why"] or ""))
    return missing


def commands(folders: Sequence[Path]) -> list[str]:
    """Of the sweeps among `folders`, what was typed."""
    return [read["command"] for folder in folders if (read := read_json(folder / RESULTS_FILE))]


def _runs_of(folder: Path) -> Iterator[Path]:
    if (folder / "config.yaml").exists():
        yield folder
        return
    here = folder / "runs" if (folder / "runs").is_dir() else folder
    inside = sorted(path.parent for path in here.glob("*/config.yaml"))
    if not inside:
        said = "there is no such folder" if not folder.exists() else "it is no run's, and holds none"
        raise ConfigError(f"{folder}: {said}; name folders of runs, or one that holds them")
    order = [point["point"] for point in _points(folder)]
    known = [here / name for name in order if here / name in inside]
    # A sweep's folder may hold points of other words: these are the ones that its last words named.
    yield from known or inside


def _points(folder: Path) -> list[dict[str, str]]:
    read = read_json(folder / RESULTS_FILE)
    return read["points"] if read else []
