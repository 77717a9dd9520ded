"""Who speaks when a job is refused, and what torchrun's summary makes of it."""

import json
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import train.failure
from models.config import ConfigError
from parallel.world import Launch
from train.failure import refuse

LINE = "switchyard: train.steps=0: set it to at least 1"


@pytest.fixture
def error_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torchrun would look; and an exit that can be caught."""

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(train.failure, "exit_at_once", leave)
    monkeypatch.setattr(train.failure, "GRACE_S", 0.0)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    return tmp_path / "error.json"


def refuse_on(rank: int, local_rank: int, launched: bool = True) -> None:
    launch = Launch(rank=rank, world_size=4, local_rank=local_rank, local_world_size=2, launched=launched)
    with pytest.raises(SystemExit) as left:
        refuse(ConfigError(LINE.removeprefix("switchyard: ")), launch)
    assert left.value.code == 2


def test_rank_0_prints_the_line_and_torchrun_names_it_once(
    error_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refuse_on(rank=0, local_rank=0)
    assert capsys.readouterr().err == LINE + "\n"
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(error_file))
    summary = ChildFailedError("train", {0: failure}).format_msg()
    assert summary.count(LINE) == 1
    assert "Traceback" not in summary
    assert json.loads(error_file.read_text())["message"]["message"] == LINE


def test_another_machines_first_rank_only_records(error_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refuse_on(rank=2, local_rank=0)
    assert capsys.readouterr().err == ""
    assert error_file.exists()


def test_a_rank_that_is_refused_alone_speaks_when_nobody_has_ended_the_job(
    error_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(train.failure, "GRACE_S", 20.0)
    monkeypatch.setattr(train.failure.time, "sleep", slept.append)
    refuse_on(rank=1, local_rank=1)
    assert slept == [20.0]
    assert capsys.readouterr().err == LINE + "\n"
    assert error_file.exists()


def test_without_torchrun_there_is_nothing_to_record(
    error_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE")
    refuse_on(rank=0, local_rank=0, launched=False)
    assert capsys.readouterr().err == LINE + "\n"


def test_a_record_that_cannot_be_written_is_no_trouble(
    error_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(error_file / "no" / "folder"))
    refuse_on(rank=0, local_rank=0)
    assert capsys.readouterr().err == LINE + "\n"
