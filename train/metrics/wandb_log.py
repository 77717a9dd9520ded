"""wandb as a view of the run: it may be lost at any moment, and training goes on."""

import logging
import os
import secrets
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.metrics.config import LoggingConfig, WandbMode
from train.metrics.jsonl import METRICS_FILE, Row, read_jsonl, strict_row
from train.metrics.label import label_of


class WandbLog:
    """One wandb run per job, under one id that every attempt at the job resumes; files land in `<run_dir>/wandb/`.

    Nothing here raises, asks on stdin or waits without bound for a server. No server or no API key: one warning, and
    the run is recorded offline, to be sent later with `wandb sync`. Any other failure: one warning, and wandb is off
    for the rest of the run. An online attempt begins with those rows of earlier ones that the server lacks, so an
    offline attempt before it needs no `wandb sync`, which would send its rows a second time. Rank 0 only.
    """

    def __init__(self, run_dir: Path, config: LoggingConfig, run_config: Mapping[str, Any]) -> None:
        self._run_dir = run_dir
        self._config = config
        self._run: Any = None
        if config.wandb is WandbMode.disabled:
            return
        if config.wandb is WandbMode.offline or not self._start(WandbMode.online, run_config):
            self._start(WandbMode.offline, run_config)

    def log(self, row: Row) -> None:
        """Add one row to the run's history, as it is: `train/step` is a metric in it, and every chart's x axis."""
        if self._run is None:
            return
        try:
            # Never step=: wandb drops rows whose step is smaller than the last one's, as they are after a rollback.
            self._run.log(dict(row))
        except Exception as error:
            self._run = None
            self._warn("is off from here on", error)
            self._stop_service(1)

    def page(self, name: str, html: str) -> None:
        """Add a page to the row that comes next."""
        if self._run is None:
            return
        try:
            import wandb

            # Not a row of its own: what the server lacks is counted in rows of metrics.jsonl. And no wandb.Table, whose
            # artifact asks the server for an account.
            self._run.log({name: wandb.Html(html, inject=False)}, commit=False)
        except Exception as error:
            self._warn(f"got no {name}", error)

    def finish(self, exit_code: int = 0) -> None:
        """End the run with its exit code; waits for the upload no longer than configured. Once only."""
        if self._run is None:
            return
        run, self._run = self._run, None
        try:
            run.finish(exit_code=exit_code)
        except Exception as error:
            # wandb skips what was begun online unless told not to, and knows not which rows of a file have arrived.
            sync = f"wandb sync --include-online {shlex.quote(run.settings.sync_dir)}"
            self._warn(f"did not finish; `{sync}` sends all rows of this attempt, also those that had arrived", error)
        self._stop_service(exit_code)

    def _start(self, mode: WandbMode, run_config: Mapping[str, Any]) -> bool:
        # wandb reports its own errors over connections of its own, and waits 10 s for a dead server at process exit.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        # wandb wraps these two to guess the exit code, which `finish` is told, and prints uncaught errors twice.
        hooks = sys.exit, sys.excepthook
        try:
            import wandb

            wandb.setup(settings=wandb.Settings(silent=True))  # silent also means: no login prompt
            self._run = wandb.init(
                mode=mode.value,
                project=self._config.wandb_project,
                entity=self._config.wandb_entity,
                group=self._config.wandb_group,
                name=self._run_dir.name,
                id=job_run_id(self._run_dir),
                resume="allow",
                dir=str(self._run_dir),
                config=dict(run_config),
                tags=[label] if (label := label_of(run_config)) else None,
                settings=wandb.Settings(
                    console="off",
                    silent=True,
                    init_timeout=self._config.wandb_init_timeout_s,
                    finish_timeout=self._config.wandb_finish_timeout_s,
                    finish_timeout_raises=True,
                ),
            )
            self._run.define_metric("train/step")
            self._run.define_metric("*", step_metric="train/step")
            if mode is WandbMode.online:
                self._send_missed()
        except Exception as error:
            self._run = None
            self._warn("goes on offline" if mode is WandbMode.online else "is off", error)
            self._stop_service(1)  # it still holds the run id, and would refuse it to a second start
        finally:
            sys.exit, sys.excepthook = hooks
        return self._run is not None

    def _send_missed(self) -> None:
        """Log what the server lacks of earlier attempts: wandb sends every 15 s, and SIGKILL loses what it holds."""
        path = self._run_dir / METRICS_FILE
        earlier = read_jsonl(path) if path.exists() else []
        # wandb numbers a run's rows where no step= is passed, and what arrives of them is always their beginning.
        for row in earlier[self._run.starting_step :]:
            self._run.log(strict_row(row))

    def _stop_service(self, exit_code: int) -> None:
        """End wandb's background process, and with it the atexit hook that would wait for it."""
        try:
            import wandb

            wandb.teardown(exit_code)
        except Exception as error:
            logging.getLogger(__name__).debug("wandb's service was gone already: %r", error)

    def _warn(self, what: str, error: Exception) -> None:
        line = " ".join(str(error).split())  # wandb's messages go over several
        logging.getLogger(__name__).warning("wandb %s: %s: %s", what, type(error).__name__, line)


def job_run_id(run_dir: Path) -> str:
    """The job's wandb run id, kept in `<run_dir>/wandb/run_id`; made on the first call. Raises OSError."""
    path = run_dir / "wandb" / "run_id"
    if path.exists() and (run_id := path.read_text().strip()):
        return run_id
    run_id = secrets.token_hex(4)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(run_id + "\n")
    return run_id
