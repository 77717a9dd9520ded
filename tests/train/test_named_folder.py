"""Where a run is to be written, found out before a process waits for another, and without making anything."""

import os
from pathlib import Path

import pytest

from models.config import ConfigError
from train.config import RunConfig
from train.run_folder import named_folder


def test_a_run_is_named_by_folder_by_name_or_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert named_folder(RunConfig(dir="a/b")) == tmp_path / "a" / "b"
    assert named_folder(RunConfig(name="n")) == tmp_path / "runs" / "n"
    assert named_folder(RunConfig(name="n", root="~/all")) == tmp_path / "home" / "all" / "n"
    assert named_folder(RunConfig()) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (RunConfig(dir="file"), "run.dir=file: {here}/file is not a folder that can be written to; name another"),
        (RunConfig(dir="file/below"), "run.dir=file/below: {here}/file is not a folder"),
        (RunConfig(root="file"), "run.root=file: {here}/file is not a folder"),
        (RunConfig(name="file", root="."), "run.name=file: {here}/file is not a folder"),
        (RunConfig(dir="loop/x"), "run.dir=loop/x: "),
        (RunConfig(dir="~nobody-here/x"), "run.dir=~nobody-here/x: "),
        (RunConfig(dir="x" * 300), "run.dir=xxx"),
    ],
)
def test_a_place_that_cannot_be(run: RunConfig, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ConfigError) as refused:
        named_folder(run)
    assert str(refused.value).startswith(said.format(here=tmp_path))
    assert "\n" not in str(refused.value)
    assert "name another" in str(refused.value)


def test_a_folder_of_somebody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # to root everything is its own
    with pytest.raises(ConfigError, match="is not a folder that can be written to"):
        named_folder(RunConfig(dir=str(tmp_path / "run")))
