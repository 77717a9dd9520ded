"""Reads the file that wandb keeps of a run on disk. wandb 0.30 dropped its own reader; the format is a LevelDB log."""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from wandb.proto import wandb_internal_pb2 as pb

_BLOCK = 32 * 1024
_FILE_HEADER = 7  # ":W&B", a magic number, a version
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass
class WandbFile:
    """One attempt at a run, as wandb recorded it."""

    run_id: str = ""
    group: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    """Rows in order; wandb's own keys, which begin with `_`, and pages are left out."""

    pages: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name what the history says of each page: its size, and where it lies."""

    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)
    """What `define_metric` was told: name or pattern → its x axis, "" for none."""

    exit_code: Optional[int] = None
    """None: the run was never finished."""


def read_wandb_file(path: Path) -> WandbFile:
    """Everything this reader knows of the `.wandb` file at `path`. Raises ValueError for a bad checksum."""
    run = WandbFile()
    for record in _records(path.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.run_id, run.group, run.tags = record.run.run_id, record.run.run_group, list(record.run.tags)
            run.config |= _items(record.run.config.update)
        elif kind == "history":
            items = _items(record.history.item)
            names = [key.removesuffix("/_type") for key in items if key.endswith("/_type")]
            page_of = {key: name for key in items for name in names if key.startswith(f"{name}/")}
            run.history.append({key: value for key, value in items.items() if key not in page_of})
            for key, name in page_of.items():
                run.pages.setdefault(name, {})[key.removeprefix(f"{name}/")] = items[key]
        elif kind == "summary":
            run.summary |= _items(record.summary.update)
        elif kind == "metric":
            run.metrics[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def read_wandb_history(path: Path) -> list[dict[str, Any]]:
    """The rows that the `.wandb` file at `path` holds."""
    return read_wandb_file(path).history


def wandb_files(run_dir: Path, mode: str = "offline-run") -> list[Path]:
    """The `.wandb` files of a run folder's attempts, oldest first; `mode` is `offline-run` or `run`."""
    return sorted(run_dir.glob(f"wandb/{mode}-*/run-*.wandb"))


def _items(items: Any) -> dict[str, Any]:
    pairs = ((item.key or "/".join(item.nested_key), json.loads(item.value_json)) for item in items)
    return {key: value for key, value in pairs if not key.startswith("_")}


def _records(data: bytes) -> Iterator[pb.Record]:
    payload, position = b"", _FILE_HEADER
    while position + 7 <= len(data):
        if (left := _BLOCK - position % _BLOCK) < 7:  # a record's header is never split over two blocks
            position += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, position)
        chunk = data[position + 7 : position + 7 + length]
        if zlib.crc32(chunk, zlib.crc32(bytes([kind]))) != checksum:
            raise ValueError(f"bad checksum at byte {position}")
        position += 7 + length
        payload = chunk if kind in (_FULL, _FIRST) else payload + chunk
        if kind in (_FULL, _LAST):
            yield pb.Record.FromString(payload)
