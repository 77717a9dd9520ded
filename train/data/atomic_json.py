"""JSON files that are there whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as JSON; a crash, of this program or the machine, leaves the old file or the new one.

    Raises OSError.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # several processes may write the same file
    with open(temporary, "w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object that `path` holds; None if there is no file, or no object in it."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
