"""What watchers have written of an attempt. A watcher makes its file when it has something to say, so that one look at
the folder tells that all is well."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any


def watch_path(attempt_folder: Path, rank: int) -> Path:
    """Where a rank's watcher writes."""
    return attempt_folder / f"watch-{rank:05d}.jsonl"


def hanging(attempt_folder: Path) -> Iterator[int]:
    """Ranks that were found to hang."""
    return (rank for rank, event in _stamped(attempt_folder) if event["ev"] == "hang")


def a_rank_is_lost(attempt_folder: Path) -> bool:
    """Whether a rank of the attempt, on whatever host, hangs or went away before the job's end."""
    return any(
        event["ev"] == "hang" or (event["ev"] == "gone" and (event["beat"] or {}).get("phase") != "shutdown")
        for _, event in _stamped(attempt_folder)
    )


def _stamped(attempt_folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """All events, by rank; none where the folder cannot be read now."""
    with suppress(OSError):
        for name in os.listdir(attempt_folder):
            if match := re.fullmatch(r"watch-(\d+)\.jsonl", name):
                for event in read_events(attempt_folder / name):
                    yield int(match[1]), event


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Its events; what does not parse is not written to its end yet."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            continue
