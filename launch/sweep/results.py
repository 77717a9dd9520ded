"""What a sweep amounts to: a row for each point, as results.json, .csv and, where pyarrow is installed, .parquet.

All three hold the same rows. NaN and the infinities stand by name in the first two, as in every JSON file of ours.
"""

import csv
import datetime
import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launch.run_rows import read_rows, timed_rows
from launch.sweep.point_job import PointJob
from models.config import ConfigError
from train.data.atomic_json import write_json
from train.ledger.events import attempts
from train.ledger.fold import fold
from train.ledger.read import read_ledger
from train.metrics.breakdown import COMMUNICATION, mean_breakdown, row_key
from train.metrics.jsonl import strict_value
from train.run_folder import read_config

NUMBERS = (
    *("tokens_per_sec", "step_time_s", "step_time_iqr_s", "mfu", "peak_memory_gib", "steps", "tokens"),
    *("loss_first", "loss_last", "eval_loss", "wall_s", "label"),
)
"""Of a summary, and what they must not be shown without."""
JSON_FILE, CSV_FILE, PARQUET_FILE = "results.json", "results.csv", "results.parquet"
Result = dict[str, Any]
"""A point's row: its state and values; numbers of one that is done; why, of one that has none to come."""


def result_of(job: PointJob, swept: Sequence[str]) -> Result:
    """The row of one point. A key that has nothing to say is there, as None. What of one that is done cannot be read,
    but for its summary, is left out, and said in `why`.

    Raises:
        ConfigError: if its summary cannot be read.
    """
    summary = job.summary() if job.done else None
    row: Result = {"point": job.name, "state": job.state.value, "label": summary.label if summary else None}
    row |= {key: job.point.values.get(key) for key in swept}
    row |= {name: getattr(summary, name, None) for name in NUMBERS}
    divided, why = {}, job.why
    if summary:
        try:
            divided = mean_breakdown(timed_rows(read_rows(job.folder), read_config(job.folder / "config.yaml")))
        except ConfigError as error:
            why = f"without parts of a step: {error}"
    exposed = [divided[f"exposed_comm/{kind}"] for kind in COMMUNICATION if f"exposed_comm/{kind}" in divided]
    row["exposed_comm_s"] = sum(exposed) if exposed else None
    row |= {row_key(bucket): seconds for bucket, seconds in divided.items()}
    starts = len(attempts(job.folder)) if job.folder.exists() else 0
    # Of the ledger, in which the last attempt's own end is, too.
    row["ettr"] = fold(read_ledger(job.folder)).ettr if summary and starts else None
    bound = summary.bound_by if summary else None
    return row | {"starts": starts, "bound_by": bound, "why": why, "run": str(job.folder) if starts else None}


def write_results(folder: Path, results: Sequence[Result], command: str) -> None:
    """Replace the files of an earlier call. Raises OSError."""
    columns = list(dict.fromkeys(key for row in results for key in row))
    rows = [{key: row.get(key) for key in columns} for row in results]
    written = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    strict = [{key: strict_value(value) for key, value in row.items()} for row in rows]
    write_json(folder / JSON_FILE, {"command": command, "date": written, "points": strict})
    with _replaced(folder / CSV_FILE) as path, path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(strict)
    if importlib.util.find_spec("pyarrow"):
        with _replaced(folder / PARQUET_FILE) as path:
            _write_parquet(path, rows)


def parquet_missing() -> str | None:
    """Why there is no results.parquet; None if there is."""
    if importlib.util.find_spec("pyarrow"):
        return None
    return f"no {PARQUET_FILE}: pip install 'switchyard[parquet]'; {CSV_FILE} has the same rows"


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of `path` once it is whole."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    yield temporary
    os.replace(temporary, path)


def _write_parquet(path: Path, rows: list[Result]) -> None:
    import pyarrow
    from pyarrow import parquet

    # A column without a value has no type to be read from: all are numbers, or texts that some row has.
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
