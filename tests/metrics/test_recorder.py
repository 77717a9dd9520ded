"""metrics.jsonl holds exactly what wandb gets, and losing wandb never stops training; here without a server."""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from wandb_file import read_wandb_file, wandb_files

from train.metrics.config import LoggingConfig
from train.metrics.recorder import Recorder
from train.metrics.wandb_log import job_run_id

ROWS = [{"train/step": step, "train/loss": 5.0 / step, "time/exposed_comm/dp_s": step * 1e-3} for step in range(1, 51)]


def _stored(run_dir: Path) -> list[dict[str, object]]:
    """metrics.jsonl as it is, with no conversion of ours."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_wandb_offline_holds_the_same_rows(tmp_path: Path, warned: Callable[[], list[str]]) -> None:
    hooks = sys.exit, sys.excepthook
    recorder = Recorder(tmp_path, LoggingConfig(wandb_group="layouts"), {"train": {"steps": 50}})
    assert (sys.exit, sys.excepthook) == hooks
    for row in [*ROWS, {"train/step": 51, "train/loss": math.nan, "a": math.inf, "b": -math.inf}]:
        recorder.log(row)
    recorder.log({"train/step": 3, "train/loss": 1.0})  # after a rollback: wandb drops such rows if step= is used
    recorder.close(exit_code=3)
    recorder.close(exit_code=0)

    (path,) = wandb_files(tmp_path)
    run = read_wandb_file(path)
    assert len(run.history) == 52
    assert run.history == _stored(tmp_path)
    assert run.history[50] == {"train/step": 51, "train/loss": "NaN", "a": "Infinity", "b": "-Infinity"}
    assert run.exit_code == 3
    assert (run.run_id, run.group, run.config) == (job_run_id(tmp_path), "layouts", {"train": {"steps": 50}})
    assert run.metrics == {"train/step": "", "*": "train/step"}
    assert run.summary["train/loss"] == 1.0
    assert warned() == []


def test_the_next_attempt_resumes_the_run(tmp_path: Path) -> None:
    for half in (ROWS[:25], ROWS[25:]):
        with Recorder(tmp_path, LoggingConfig(), {}) as recorder:
            for row in half:
                recorder.log(row)
        time.sleep(1.0)  # wandb names an attempt's folder by the second
    first, second = (read_wandb_file(path) for path in wandb_files(tmp_path))
    assert first.run_id == second.run_id == job_run_id(tmp_path)
    assert first.history + second.history == _stored(tmp_path) == ROWS
    assert (first.exit_code, second.exit_code) == (0, 0)


@pytest.mark.parametrize(
    ("error", "exit_code"), [(RuntimeError("boom"), 1), (SystemExit(75), 75), (SystemExit(), 0), (SystemExit("why"), 1)]
)
def test_the_context_manager_knows_the_exit_code(tmp_path: Path, error: BaseException, exit_code: int) -> None:
    with pytest.raises(type(error)), Recorder(tmp_path, LoggingConfig(), {}):
        raise error
    (path,) = wandb_files(tmp_path)
    assert read_wandb_file(path).exit_code == exit_code


def test_wandb_dying_costs_one_warning(tmp_path: Path, warned: Callable[[], list[str]]) -> None:
    with Recorder(tmp_path, LoggingConfig(), {}) as recorder:
        recorder.log(ROWS[0])
        _kill_children_named("wandb-core")
        deadline = time.monotonic() + 10
        while not warned() and time.monotonic() < deadline:  # wandb notices the broken connection a little later
            recorder.log(ROWS[1])
        for row in ROWS[2:]:
            recorder.log(row)
    assert _stored(tmp_path)[-48:] == ROWS[2:]
    (warning,) = warned()
    assert "wandb is off" in warning


def test_disabled_does_not_import_wandb(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from train.metrics.config import LoggingConfig, WandbMode
from train.metrics.recorder import Recorder
with Recorder(Path(sys.argv[1]), LoggingConfig(wandb=WandbMode.disabled), {}) as recorder:
    recorder.log({"train/step": 1})
assert "wandb" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    assert _stored(tmp_path) == [{"train/step": 1}]
    assert not (tmp_path / "wandb").exists()


def test_sigterm_still_ends_the_process(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from train.metrics.config import LoggingConfig
from train.metrics.recorder import Recorder
before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
recorder = Recorder(Path(sys.argv[1]), LoggingConfig(), {})
recorder.log({"train/step": 1})
assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
os.kill(os.getpid(), signal.SIGTERM)
"""
    # Captured output: the process's end of the pipes must close, so nothing of wandb's may outlive it for long.
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (-15, "", "")
    assert _stored(tmp_path) == [{"train/step": 1}]


def test_the_run_id_is_made_once(tmp_path: Path) -> None:
    run_id = job_run_id(tmp_path)
    assert job_run_id(tmp_path) == run_id == (tmp_path / "wandb" / "run_id").read_text().strip()
    (tmp_path / "wandb" / "run_id").write_text("")  # torn by a host crash
    assert job_run_id(tmp_path) not in ("", run_id)


def _kill_children_named(name: str) -> None:
    """SIGKILL this process's own children of that name."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = stat.read_text().split(" (", 1)
        except OSError:
            continue
        command, rest = rest.rsplit(") ", 1)
        if command == name and int(rest.split()[1]) == os.getpid():
            os.kill(int(pid), 9)
