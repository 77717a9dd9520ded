"""How far a point of a sweep has come, by its record and by what SLURM says of its job."""

from pathlib import Path
from typing import Any

import pytest
from harness.slurm_stub import slurm_stub

from launch.jobs.points import Point
from launch.sweep.point_job import PointJob, State
from launch.sweep.queue import settle


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return slurm_stub(tmp_path / "slurm", monkeypatch)


def job(folder: Path, **fields: Any) -> PointJob:
    point = Point("a", ("model=tiny",))
    made = PointJob(name="a", words=point.words, runs=folder, nproc=1, point=point, refusal=None)
    if fields:
        made.write_record(**fields)
    return made


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({}, State.new),
        ({"exit_code": None}, State.cut_off),
        ({"exit_code": 75, "last_lines": []}, State.cut_off),
        ({"exit_code": 76, "last_lines": []}, State.cut_off),
        ({"exit_code": 143, "last_lines": []}, State.cut_off),
        ({"exit_code": 1, "last_lines": ["a"]}, State.failed),
        ({"exit_code": -9, "last_lines": []}, State.failed),
        ({"slurm_job": "7"}, State.queued),
        ({"slurm_job": "7", "exit_code": 1, "last_lines": []}, State.failed),
    ],
)
def test_what_a_record_says(fields: dict[str, Any], state: State, tmp_path: Path) -> None:
    assert job(tmp_path, **fields).state is state


def test_a_point_says_where_it_goes_on(tmp_path: Path) -> None:
    made = job(tmp_path)
    assert made.goes_on == "its beginning: nothing was saved"
    (made.folder / "checkpoints" / "step-00000020").mkdir(parents=True)
    assert made.goes_on == "its beginning: nothing was saved"  # not committed
    (made.folder / "checkpoints" / "step-00000020" / "manifest.json").touch()
    assert made.goes_on == "its checkpoint after step 20"


@pytest.mark.parametrize(
    ("slurm_state", "state"),
    [
        ("FAILED", State.failed),
        ("OUT_OF_MEMORY", State.failed),
        ("CANCELLED", State.cut_off),
        ("TIMEOUT", State.cut_off),
        ("NODE_FAIL", State.cut_off),
        ("STAGE_OUT", State.queued),
    ],
)
def test_how_slurm_ended_a_job(slurm_state: str, state: State, slurm: Path, tmp_path: Path) -> None:
    (slurm / "state-7").write_text(f"JobId=7 JobName=a\n   JobState={slurm_state} Reason=x\n   ExitCode=2:0\n")
    made = job(tmp_path / "runs", slurm_job="7")
    settle(made)
    assert made.state is state
    assert (made.failure.exit_code if made.failure else None) == (2 if state is State.failed else None)


def test_a_queue_that_cannot_be_asked_has_failed_nobody(
    slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (slurm / "unreachable").touch()
    made = job(tmp_path / "runs", slurm_job="7")
    settle(made)
    assert made.state is State.queued
    err = capsys.readouterr().err
    assert err.startswith("switchyard: a: no word of job 7, which stays queued: slurm_load_jobs error: Unable to")
    assert err.count("\n") == 1
    (slurm / "unreachable").unlink()
    settle(made)
    assert made.state is State.failed
