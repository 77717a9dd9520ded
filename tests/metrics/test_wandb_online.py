"""Real wandb clients and a server that keeps runs, fails or is not there: nothing is lost, and no job is stopped."""

import math
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.run_record import RunRecord
from harness.torchrun import alone, start_torchrun
from wandb_file import read_wandb_file, read_wandb_history, wandb_files
from wandb_server import API_KEY, FakeWandbServer, StoredRun

from train.metrics.config import LoggingConfig, WandbMode
from train.metrics.recorder import Recorder
from train.metrics.wandb_log import job_run_id

ROWS = [{"train/step": step, "train/loss": 5.0 / step, "time/exposed_comm/dp_s": step * 1e-3} for step in range(1, 51)]
CONFIG = {"model": {"name": "tiny", "dim": 64}, "train": {"steps": 50}}
METRICS = {"train/step": "", "*": "train/step"}
CLOSED_PORT = "http://127.0.0.1:9"  # discard: nothing listens there

JOB = (
    "model=tiny",
    "strategy=single",
    "train.device=cpu",
    "train.log_every=1",
    "train.eval_every=0",
    "optim.warmup_steps=1",
    "checkpoint.every=1000",
)

Warned = Callable[[], list[str]]
Point = Callable[[str], None]


@pytest.fixture
def point_wandb_at(monkeypatch: pytest.MonkeyPatch) -> Point:
    """Tells clients where the server is, the key, and to send and try again every second instead of 15 and 2 to 60."""

    def point(url: str) -> None:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("WANDB_API_KEY", API_KEY)
        monkeypatch.setenv("WANDB__FILE_STREAM_TRANSMIT_INTERVAL", "1")
        for kind in ("FILE_STREAM", "GRAPHQL"):
            monkeypatch.setenv(f"WANDB__{kind}_RETRY_WAIT_MIN_SECONDS", "1")
            monkeypatch.setenv(f"WANDB__{kind}_RETRY_WAIT_MAX_SECONDS", "1")

    return point


def _online(init_timeout_s: float = 20.0, finish_timeout_s: float = 20.0) -> LoggingConfig:
    return LoggingConfig(
        wandb=WandbMode.online, wandb_init_timeout_s=init_timeout_s, wandb_finish_timeout_s=finish_timeout_s
    )


def _sync(*words: str) -> None:
    """`wandb sync words...`, as its user types it."""
    command = [sys.executable, "-m", "wandb", "sync", *words]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def _only_run(server: FakeWandbServer, folder: Path) -> StoredRun:
    """The run of the job in `folder`, if it is the only one that the server has."""
    assert list(server.runs) == [job_run_id(folder)]
    return server.runs[job_run_id(folder)]


def test_a_job_killed_and_started_again_is_one_whole_run(tmp_path: Path, point_wandb_at: Point) -> None:
    """Rows of the seconds before SIGKILL never left the machine: the next attempt sends them before its own."""
    record = RunRecord(tmp_path / "run")
    words = (*JOB, "logging.wandb=online", "logging.wandb_project=parts", "logging.wandb_entity=yard")
    words += (f"run.dir={record.folder}",)
    with FakeWandbServer() as server:
        point_wandb_at(server.url)
        with start_torchrun(1, *words, "train.steps=5000") as launch:
            server.wait_for(lambda server: any(run.rows for run in server.runs.values()), timeout=60.0)
            server.fail(500, "file_stream")  # nothing more gets through
            arrived = len(_only_run(server, record.folder).rows)
            launch.wait_for(lambda _: len(record.rows) >= arrived + 3)
            launch.kill_all()
        server.recover()
        killed = record.rows
        run = _only_run(server, record.folder)
        assert run.rows == killed[:arrived]
        assert not run.complete

        done = alone(*words, "train.steps=5")
        assert done.returncode == 0, done.stderr
        assert "wandb" not in done.stderr
        run = _only_run(server, record.folder)
    assert run.rows == record.rows
    assert run.rows[: len(killed)] == killed
    assert [row["train/step"] for row in run.rows[len(killed) :]] == [1, 2, 3, 4, 5, 5]  # from the start: no checkpoint
    assert [row["_step"] for row in run.history] == list(range(len(run.rows)))
    assert run.config == record.config
    assert run.metrics == METRICS
    assert (run.complete, run.exit_code) == (True, 0)
    assert (run.entity, run.project) == ("yard", "parts")


def test_every_row_arrives_as_it_is_in_the_file(tmp_path: Path, point_wandb_at: Point, warned: Warned) -> None:
    with FakeWandbServer() as server:
        point_wandb_at(server.url)
        recorder = Recorder(tmp_path, _online(), CONFIG)
        for row in [*ROWS, {"train/step": 51, "train/loss": math.nan, "a": math.inf, "b": -math.inf}]:
            recorder.log(row)
        recorder.log({"train/step": 3, "train/loss": 1.0})  # after a rollback
        recorder.close(exit_code=3)
    run = _only_run(server, tmp_path)
    assert len(run.rows) == 52
    assert run.rows == RunRecord(tmp_path).rows
    assert (run.config, run.metrics) == (CONFIG, METRICS)
    assert (run.complete, run.exit_code) == (True, 3)
    assert warned() == []


def test_rows_that_went_offline_arrive_with_the_next_attempt(tmp_path: Path, point_wandb_at: Point) -> None:
    point_wandb_at(CLOSED_PORT)
    with Recorder(tmp_path, _online(init_timeout_s=1.0), CONFIG) as recorder:
        for row in [*ROWS[:20], {"train/step": 21, "train/loss": math.nan}]:
            recorder.log(row)
    with FakeWandbServer() as server:
        point_wandb_at(server.url)
        for more in (ROWS[20:30], ROWS[30:]):
            with Recorder(tmp_path, _online(), CONFIG) as recorder:
                for row in more:
                    recorder.log(row)
    assert _only_run(server, tmp_path).rows == RunRecord(tmp_path).rows
    assert len(RunRecord(tmp_path).rows) == 51


@pytest.mark.parametrize("status", [500, 429])
def test_a_server_that_recovers_gets_every_row(
    status: int, tmp_path: Path, point_wandb_at: Point, warned: Warned
) -> None:
    with FakeWandbServer() as server:
        point_wandb_at(server.url)
        server.fail(status, times=1)  # the client's first question
        recorder = Recorder(tmp_path, _online(), CONFIG)
        assert server.refused == {"RunResumeStatus": 1}
        server.fail(status, "file_stream", times=1)
        for row in ROWS:
            recorder.log(row)
        recorder.close()
    run = _only_run(server, tmp_path)
    assert server.refused == {"RunResumeStatus": 1, "file_stream": 1}
    assert run.rows == RunRecord(tmp_path).rows == ROWS
    assert (run.complete, run.exit_code) == (True, 0)
    assert warned() == []


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("closed port", "refused"),
        ("silent server", "deadline"),
        ("500 for all", "HTTP 500"),
        ("429 for all", "HTTP 429"),
        ("wrong key", "401"),
        ("no key", "No API key"),
    ],
)
def test_without_a_server_the_run_goes_on_offline(
    trouble: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    point_wandb_at: Point,
    warned: Warned,
) -> None:
    # The silent one takes connections, as the kernel does for it, and never answers.
    with FakeWandbServer() as server, socket.create_server(("127.0.0.1", 0)) as silent:
        urls = {"closed port": CLOSED_PORT, "silent server": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        point_wandb_at(urls.get(trouble, server.url))
        if trouble.endswith("for all"):
            server.fail(int(trouble.split()[0]))
        elif trouble == "wrong key":
            monkeypatch.setenv("WANDB_API_KEY", "1" * 40)
        elif trouble == "no key":
            monkeypatch.delenv("WANDB_API_KEY")
        with Recorder(tmp_path, _online(init_timeout_s=1.0), CONFIG) as recorder:
            for row in ROWS:
                recorder.log(row)
        assert server.runs == {}
        assert server.requests.total() <= 5  # wandb's own time to give up is 90 s, with a request in each
    (path,) = wandb_files(tmp_path)
    assert read_wandb_file(path).exit_code == 0
    assert read_wandb_history(path) == RunRecord(tmp_path).rows == ROWS
    (warning,) = warned()
    assert warning.startswith("wandb goes on offline: ")
    assert message in warning
    assert "\n" not in warning


@pytest.mark.parametrize("trouble", ["dies", "fails"])
def test_a_server_lost_on_the_way_costs_one_warning(
    trouble: str, tmp_path: Path, point_wandb_at: Point, warned: Warned
) -> None:
    """Left to itself, wandb tries to send for days."""
    with FakeWandbServer() as server:
        point_wandb_at(server.url)
        recorder = Recorder(tmp_path / "a run", _online(finish_timeout_s=1.0), CONFIG)
        recorder.log(ROWS[0])
        if trouble == "dies":
            server.die()
        else:
            server.fail(500)
        for row in ROWS[1:]:
            recorder.log(row)
        recorder.close()
    (path,) = wandb_files(tmp_path / "a run", "run")
    assert read_wandb_history(path) == RunRecord(tmp_path / "a run").rows == ROWS
    (warning,) = warned()
    assert warning.startswith("wandb did not finish; ")
    assert "\n" not in warning

    with FakeWandbServer() as server:
        point_wandb_at(server.url)
        advice = re.search(r"`wandb sync (.+)`", warning)
        assert advice
        _sync(*shlex.split(advice[1]))
    assert _only_run(server, tmp_path / "a run").rows == ROWS


def test_a_job_that_no_server_takes_is_synced_later(tmp_path: Path, point_wandb_at: Point) -> None:
    record = RunRecord(tmp_path / "run")
    words = (*JOB, "train.steps=5", "logging.wandb=online", "logging.wandb_init_timeout_s=1")
    with FakeWandbServer() as server:
        point_wandb_at(server.url)
        server.fail(500)
        done = alone(*words, f"run.dir={record.folder}")
        assert done.returncode == 0, done.stderr
        (line,) = [line for line in done.stderr.splitlines() if "wandb" in line]
        assert line.startswith("wandb goes on offline: CommError: ")
        assert "Traceback" not in done.stderr
        assert (len(record.rows), server.runs) == (6, {})  # the last is of the books
        assert (record.folder / "summary.json").exists()

        server.recover()
        _sync(*map(str, record.folder.glob("wandb/*run-*")))
    run = _only_run(server, record.folder)
    assert run.rows == record.rows
    assert run.config == record.config
    assert run.metrics == METRICS
    assert (run.complete, run.exit_code) == (True, 0)


def test_syncing_a_killed_offline_run_sends_what_its_files_hold(tmp_path: Path, point_wandb_at: Point) -> None:
    """wandb writes blocks of 32 KiB: what SIGKILL leaves of an attempt is its beginning. The next one is whole."""
    program = """
import os, signal, sys
from pathlib import Path
from train.metrics.config import LoggingConfig
from train.metrics.recorder import Recorder
with Recorder(Path(sys.argv[1]), LoggingConfig(), {}) as recorder:
    for step in range(500):
        recorder.log({"train/step": step, "train/loss": 1 / (step + 1)})
    while sys.argv[2] == "die":
        recorder.log({"train/step": 500, "train/loss": 0})
        if any(path.stat().st_size > 2**16 for path in Path(sys.argv[1]).glob("wandb/offline-run-*/*.wandb")):
            os.kill(os.getpid(), signal.SIGKILL)
"""
    for end, status in (("die", -9), ("finish", 0)):
        second = int(time.time())
        done = subprocess.run([sys.executable, "-c", program, str(tmp_path), end], timeout=60)
        assert done.returncode == status
        while int(time.time()) == second:  # wandb names an attempt's folder by the second
            time.sleep(0.05)
    killed, finished = (read_wandb_history(path) for path in wandb_files(tmp_path))
    stored = RunRecord(tmp_path).rows
    assert 0 < len(killed) <= len(stored) - 500
    assert killed == stored[: len(killed)]
    assert finished == stored[-500:]
    with FakeWandbServer() as server:
        point_wandb_at(server.url)
        for path in wandb_files(tmp_path):
            _sync(str(path.parent))  # one at a time: of several, wandb leaves out those after a torn file, and exits 0
    run = _only_run(server, tmp_path)
    assert run.rows == killed + finished
    assert (run.complete, run.exit_code) == (True, 0)
