"""The pen of one rank: appends events to its file."""

import json
from pathlib import Path
from typing import Any

from train.ledger.events import now_ns
from train.line_file import LineFile


class Ledger:
    """See events.py for what is written. Threads may share it; a disk that takes nothing for a while ends no job."""

    def __init__(self, path: Path) -> None:
        """Append to `path`; its folder is there. Raises OSError."""
        self._lines = LineFile(path)

    def write(
        self, event: str, *, sync: bool = False, required: bool = False, t: int | None = None, **fields: Any
    ) -> None:
        """Append `event` with its `fields`, as of `t` (None: now). `sync`: return when the disk has it. Raises OSError
        for what is `required` and cannot be written now."""
        line = json.dumps({"ev": event, "t": now_ns() if t is None else t} | fields, separators=(",", ":"))
        self._lines.append(line.encode(), sync=sync, required=required)

    def close(self) -> None:
        """Close the file."""
        self._lines.close()
