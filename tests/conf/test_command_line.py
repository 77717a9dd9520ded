"""The flags beside the words."""

from pathlib import Path

import pytest

from conf.command_line import CommandLine
from models.config import ConfigError


@pytest.mark.parametrize("flag", [["--cfg", "job"], ["-c", "job"], ["--cfg=job"]])
def test_cfg_asks_for_the_job(flag: list[str]) -> None:
    line = CommandLine.parse(["model=tiny", *flag, "train.steps=3"], "program")
    assert (line.overrides, line.print_config, line.config_dir) == (["model=tiny", "train.steps=3"], True, None)


def test_a_value_may_have_dashes_and_equal_signs(tmp_path: Path) -> None:
    line = CommandLine.parse(["run.name=--cfg=job", f"--config-dir={tmp_path}"], "program")
    assert (line.overrides, line.config_dir, line.print_config) == (["run.name=--cfg=job"], tmp_path, False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cfg"], "--cfg prints the job: write --cfg job"),
        (["--cfg", "all"], "--cfg prints the job: write --cfg job"),
        (["--config-dir"], "--config-dir : name a folder that holds model/NAME.yaml"),
        (["--config-dir", "/no/such"], "--config-dir /no/such: name a folder"),
        (["--config-dir", __file__], f"--config-dir {__file__}: name a folder"),
        (["--config-dir", "~nobody-here/x"], "--config-dir ~nobody-here/x: name a folder"),
        (["--multirun"], "unknown flag --multirun: there are --cfg job, --config-dir DIR and --help"),
        (["-m"], "unknown flag -m"),
        (["--model", "tiny"], "unknown flag --model"),
        (["--model=tiny"], "unknown flag --model"),
        (["--"], "unknown flag --:"),
        (["-"], "unknown flag -:"),
    ],
)
def test_a_flag_that_is_wrong(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        CommandLine.parse(words, "program")
    assert str(refused.value).startswith(said)


def test_help_lists_every_option_and_marks_the_defaults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "wide.yaml").write_text("# A wide one.\ndim: 96\n")
    with pytest.raises(SystemExit) as left:
        CommandLine.parse(["--config-dir", str(tmp_path), "--help"], "a program")
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("a program [key=value …] [--cfg job] [--config-dir DIR]\n")
    for line in (
        "  model=",
        "   * small        The CPU main job",
        "     tiny         ",
        "     wide         A wide one.",
    ):
        assert line in said
    assert said.count("*") - said.count(", * by default") == 11  # one a group


def test_of_many_ranks_one_prints_the_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as left:
        CommandLine.parse(["-h"], "program")
    assert left.value.code == 0
    assert capsys.readouterr().out == ""
