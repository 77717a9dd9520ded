"""The pen of one rank: appends events to its file."""

import json
import os
from pathlib import Path
from typing import Any

from train.ledger.events import now_ns


class Ledger:
    """See events.py for what is written. Threads may share it: a line is one write. Raises OSError (a full disk)."""

    def __init__(self, path: Path) -> None:
        """Append to `path`; its folder is there."""
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def write(self, event: str, *, sync: bool = False, t: int | None = None, **fields: Any) -> None:
        """Append `event` with its `fields`, as of `t` (None: now). `sync`: return when the disk has it."""
        if self._descriptor < 0:
            return
        line = json.dumps({"ev": event, "t": now_ns() if t is None else t} | fields, separators=(",", ":")) + "\n"
        os.write(self._descriptor, line.encode())
        if sync:
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file. What a thread would still write is nowhere then; a second call does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
