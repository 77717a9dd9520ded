"""What watchers have written of an attempt. A watcher makes its file when it has something to say, so that one look at
the folder tells that all is well."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def watch_path(attempt_folder: Path, rank: int) -> Path:
    """Where a rank's watcher writes."""
    return attempt_folder / f"watch-{rank:05d}.jsonl"


def hang_stamped(attempt_folder: Path, rank: int) -> bool:
    """Whether the rank was found to hang."""
    return any(event["ev"] == "hang" for event in read_events(watch_path(attempt_folder, rank)))


def a_rank_is_lost(attempt_folder: Path) -> bool:
    """Whether a rank of the attempt, on whatever host, hangs or went away before the job's end."""
    return any(
        event["ev"] == "hang" or (event["ev"] == "gone" and (event["beat"] or {}).get("phase") != "shutdown")
        for name in os.listdir(attempt_folder)
        if name.startswith("watch-")
        for event in read_events(attempt_folder / name)
    )


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Its events; what does not parse is not written to its end yet."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            continue
