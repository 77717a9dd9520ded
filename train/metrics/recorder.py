"""The one door by which metrics leave a run."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from train.metrics.config import LoggingConfig
from train.metrics.jsonl import METRICS_FILE, JsonlLog, strict_row
from train.metrics.wandb_log import WandbLog


class Recorder:
    """Sends every row to `<run_dir>/metrics.jsonl` and, unchanged, to wandb: the file holds exactly what wandb gets.

    The file is written first and never depends on wandb. As a context manager it closes with the exit code that the
    process is about to have. Rank 0 only. Raises OSError where the file cannot be made.
    """

    def __init__(self, run_dir: Path, config: LoggingConfig, run_config: Mapping[str, Any]) -> None:
        self._jsonl = JsonlLog(run_dir / METRICS_FILE)
        self._wandb = WandbLog(run_dir, config, run_config)

    def log(self, row: Mapping[str, float | int]) -> None:
        """Record one row; it should hold `train/step`, the x axis of everything."""
        strict = strict_row(row)
        self._jsonl.append(strict)
        self._wandb.log(strict)

    def page(self, name: str, html: str) -> None:
        """Give wandb a page beside the next row."""
        self._wandb.page(name, html)

    def close(self, exit_code: int = 0) -> None:
        """Close both; waits for wandb's upload no longer than configured. A second call does nothing."""
        self._jsonl.close()
        self._wandb.finish(exit_code)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(_exit_code(error))


def _exit_code(error: BaseException | None) -> int:
    """What the interpreter exits with if `error` is never caught."""
    if error is None:
        return 0
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 1
