"""Jobs of two ranks that are told to end, whose launcher dies, that hang, and that are started again."""

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness.run_record import RunRecord
from harness.torchrun import REPOSITORY, TorchrunLaunch, alone, start_torchrun, torchrun

from train.ledger.events import attempts

JOB = ("model=tiny", "train.device=cpu", "train.log_every=1", "train.eval_sequences=0", "logging=off")
LONG = (*JOB, "strategy=ddp", "train.steps=5000")
RESTARTS = ("--max-restarts=1",)
HARNESS = {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])}


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    """Of the run that the test starts."""
    return RunRecord(tmp_path / "run")


def running(record: RunRecord, *words: str, steps: int = 4, agent_words: Sequence[str] = ()) -> TorchrunLaunch:
    """A job of two ranks that has done some steps."""
    launch = start_torchrun(2, *LONG, f"run.dir={record.folder}", *words, agent_words=agent_words)
    launch.wait_for(lambda _: record.last_step >= steps)
    return launch


def events(record: RunRecord, file: str, attempt: int = 1) -> list[dict[str, Any]]:
    """Of one file of the ledger."""
    path = record.folder / "ledger" / f"attempt-{attempt:04d}" / file
    return [json.loads(line) for line in path.read_text().splitlines()]


def last_words(record: RunRecord) -> list[tuple[str, int]]:
    """Of both ranks: cause and code, which are the process's, too."""
    exits = [events(record, f"rank-0000{rank}.jsonl")[-1] for rank in range(2)]
    assert [event["ev"] for event in exits] == ["exit", "exit"]
    return [(event["cause"], event["code"]) for event in exits]


def stops(record: RunRecord) -> list[list[str]]:
    """Of both ranks: for what they stopped."""
    files = [events(record, f"rank-0000{rank}.jsonl") for rank in range(2)]
    return [[event["cause"] for event in file if event["ev"] == "stop"] for file in files]


def our_lines(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("switchyard: ")]


@pytest.mark.parametrize("to_all", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_a_job_that_is_told_to_end_saves_one_step_on_all_ranks(to_all: bool, record: RunRecord) -> None:
    """torchrun passes SIGTERM on; a cluster may also signal one rank alone."""
    with running(record) as launch:
        agent = psutil.Process(launch.worker_pids()[1]).parent()
        assert agent is not None
        (agent if to_all else psutil.Process(launch.worker_pids()[1])).send_signal(signal.SIGTERM)
        done = launch.wait(60)
    assert done.returncode != 0
    assert record.saved_steps == [record.last_step]
    assert our_lines(done.stderr) == [
        f"switchyard: told to end (SIGTERM): ended after step {record.last_step}, saved; the same words go on"
    ]
    assert last_words(record) == [("preempted", 75)] * 2
    assert stops(record) == [["preempted"]] * 2


@pytest.mark.soak
def test_a_file_stops_a_job_and_keeps_it_from_going_on(record: RunRecord) -> None:
    with running(record, "checkpoint=off", agent_words=RESTARTS) as launch:
        (record.folder / "STOP").touch()
        done = launch.wait(60)
    assert "exitcode  : 76" in done.stderr
    assert record.saved_steps == []  # nor would it have at the end
    line, again_line = our_lines(done.stderr)
    assert again_line == "switchyard: attempt 1 was stopped, and a restart by torchrun does not undo that"
    assert attempts(record.folder) == [1]
    assert f"ended after step {record.last_step}, not saved (checkpoint.every and checkpoint.at_end are off)" in line
    assert (last_words(record), stops(record)) == ([("stopped", 76)] * 2, [["stopped"]] * 2)

    again = alone(*JOB, "strategy=single", f"run.dir={record.folder}")
    assert again.returncode == 2
    stop = record.folder / "STOP"
    assert our_lines(again.stderr) == [f"switchyard: {stop} asks this run to stop: remove it to go on"]


def test_a_newer_attempt_ends_an_older_one_which_writes_no_more(record: RunRecord) -> None:
    with running(record, "checkpoint.every=1000") as launch:
        (record.folder / "ledger" / "attempt-0002").mkdir()
        done = launch.wait(60)
    (line,) = our_lines(done.stderr)
    assert line.endswith("not saved: a newer start of this job has its folder")
    assert last_words(record) == [("fenced", 77)] * 2
    assert record.saved_steps == []
    assert not (record.folder / "summary.json").exists()


def test_ranks_die_with_their_launcher(record: RunRecord) -> None:
    with running(record) as launch:
        ranks = [psutil.Process(pid) for pid in launch.worker_pids().values()]
        agent = ranks[0].parent()
        assert agent is not None
        watchers = [watcher for rank in ranks for watcher in rank.children()]
        agent.kill()
        psutil.wait_procs(ranks + watchers, timeout=10)
        left = [process for process in ranks + watchers if process.is_running()]
        assert [process for process in left if process.status() != psutil.STATUS_ZOMBIE] == []
    for rank in range(2):
        (gone,) = events(record, f"watch-0000{rank}.jsonl")
        assert gone["ev"] == "gone"
        assert gone["beat"]["step"] >= record.last_step


@pytest.mark.soak  # a watcher's kill is in test_watcher.py, a job that hangs beside it in soak
def test_a_rank_that_stands_still_is_named_and_ends_the_job(record: RunRecord) -> None:
    with running(record, "recovery.step_limit_s=2") as launch:
        psutil.Process(launch.worker_pids()[1]).suspend()
        done = launch.wait(60)
    (line,) = [line for line in our_lines(done.stderr) if "killing it" in line]
    assert line.startswith("switchyard: rank 1 has been in ")
    assert "for 2 s (limit 2 s), stopped by a signal: stacks in " in line
    hang, gone = events(record, "watch-00001.jsonl")
    assert (hang["ev"], gone["ev"]) == ("hang", "gone")
    stacks = (record.folder / "ledger" / "attempt-0001" / "stacks-00000.txt").read_text()
    assert "train/step.py" in stacks  # what the other one waited in


def test_torchrun_starts_a_run_again_in_its_folder(tmp_path: Path) -> None:
    """Which nobody named: both starts name it by torchrun."""
    words = (*JOB, "strategy=ddp", "train.steps=6", "checkpoint.every=2")
    launch = start_torchrun(
        2, "5", *words, module="harness.crashing_rank", cwd=tmp_path, env=HARNESS, agent_words=RESTARTS
    )
    with launch:
        done = launch.wait(120)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    record = RunRecord(folder)
    assert record.saved_steps == [4, 6]
    (resumed,) = [event for event in events(record, "rank-00000.jsonl", attempt=2) if event["ev"] == "resumed"]
    assert resumed["step"] in (2, 4)  # whether the last save was done when the rank died
    assert events(record, "watch-00000.jsonl", attempt=1)[-1]["ev"] == "gone"
    assert events(record, "rank-00000.jsonl", attempt=2)[-1]["cause"] == "finished"


@pytest.mark.soak
def test_a_preempted_job_goes_on_to_the_end_of_one_that_was_not(tmp_path: Path) -> None:
    words = (*JOB, "strategy=fsdp", "precision=fp64", "train.steps=40")
    whole, parts = RunRecord(tmp_path / "whole"), RunRecord(tmp_path / "parts")
    assert torchrun(2, *words, f"run.dir={whole.folder}").returncode == 0
    with start_torchrun(2, *words, f"run.dir={parts.folder}") as launch:
        launch.wait_for(lambda _: parts.last_step >= 5)
        psutil.Process(launch.worker_pids()[0]).terminate()
        assert launch.wait(60).returncode != 0
    assert torchrun(2, *words, f"run.dir={parts.folder}").returncode == 0
    # Each attempt ends with a row of its books alone, which has no loss: the preempted one has one more.
    learnt, expected = ([row for row in record.rows if "train/loss" in row] for record in (parts, whole))
    assert [row["train/step"] for row in learnt] == [row["train/step"] for row in expected]
    assert [row["train/loss"] for row in learnt] == [row["train/loss"] for row in expected]


@pytest.mark.soak
def test_one_that_is_stuck_when_it_is_told_to_end_has_its_grace(record: RunRecord) -> None:
    with running(record, "recovery.stop_grace_s=2", "checkpoint.every=1000") as launch:
        ranks = launch.worker_pids()
        agent = psutil.Process(ranks[1]).parent()
        assert agent is not None
        psutil.Process(ranks[1]).suspend()
        agent.terminate()
        launch.wait(60)
    assert (events(record, "rank-00000.jsonl")[-1]["cause"], record.saved_steps) == ("preempted", [])
