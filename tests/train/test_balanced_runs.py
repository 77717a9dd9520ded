"""A run whose experts are dealt out: even loads in its rows, and a label wherever a number of it is shown."""

import json
from io import StringIO
from pathlib import Path

import pytest
from harness.run_record import RunRecord
from harness.torchrun import CompletedRun, alone
from metrics.wandb_file import read_wandb_file, wandb_files
from rich.console import Console

from launch.bench.result import PointResult, Round
from launch.bench.table import print_results
from launch.cli import main
from launch.jobs.points import Point
from launch.report.run_view import RunView
from launch.sweep.results import NUMBERS
from launch.sweep.table import print_sweep
from train.metrics.label import BALANCED
from train.metrics.summary import SUMMARY_FILE, RunSummary

WORDS = ("model=tiny", "train.device=cpu", "train.steps=2", "train.log_every=1", "train.eval_sequences=4")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CompletedRun]:
    folder: Path = tmp_path_factory.mktemp("run")
    balanced = ("model.moe.routing=balanced", "model.moe.balance=none")
    ended = alone(*WORDS, *balanced, "data=synthetic", "strategy=single", f"run.dir={folder}", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return folder, ended


def test_every_expert_has_as_many_tokens(done: tuple[Path, CompletedRun]) -> None:
    rows = RunRecord(done[0]).step_rows
    assert [row["moe/load_max_over_mean"] for row in rows] == [1, 1]
    assert "moe/bias_norm" not in rows[0]


def test_its_label_is_where_its_numbers_are(
    done: tuple[Path, CompletedRun], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, ended = done
    for step in (1, 2):
        assert f"step {step}/2 ({BALANCED})  loss " in ended.stdout
    assert json.loads((folder / SUMMARY_FILE).read_text())["label"] == BALANCED
    (offline,) = wandb_files(folder)
    assert read_wandb_file(offline).tags == [BALANCED]
    for command in ("show", "goodput"):
        capsys.readouterr()
        assert main([command, str(folder)]) == 0
        assert BALANCED in " ".join(capsys.readouterr().out.split())
    assert main(["goodput", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["label"] == BALANCED


def test_a_comparison_shows_it_too(done: tuple[Path, CompletedRun]) -> None:
    summary = RunSummary.read(done[0] / SUMMARY_FILE)
    settings = {"overlap": {"name": "max"}}
    round_ = Round(1, summary, None, {"compute_fwd": 1.0, "wall": 1.0}, None, settings)
    result = PointResult(Point("ep", ()), [round_], None)
    console = Console(file=StringIO(), width=200)
    print_results([result], console)
    assert isinstance(console.file, StringIO)
    assert console.file.getvalue().count(f"ep ({BALANCED})") == 3  # its speed, where its steps go, what bounds it
    assert result.plain()["rounds"][0]["summary"]["label"] == BALANCED


def test_a_report_and_a_sweep_show_it_too(done: tuple[Path, CompletedRun]) -> None:
    view = RunView.read(done[0], "ep")
    assert view is not None
    assert view.label == f"ep ({BALANCED})"
    row = dict.fromkeys((*NUMBERS, "exposed_comm_s", "ettr", "why"), None)
    row |= {"point": "ep", "tokens_per_sec": 1.0, "step_time_s": 1.0, "step_time_iqr_s": 0.0, "loss_last": 5.0}
    console = Console(file=StringIO(), width=200)
    print_sweep([row | {"starts": 1, "state": "done", "label": view.summary.label}], console)
    assert isinstance(console.file, StringIO)
    assert f"ep ({BALANCED})" in console.file.getvalue()


def test_its_weights_are_not_published(done: tuple[Path, CompletedRun], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(done[0]), "--format", "hf"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("switchyard: model.moe.routing=balanced dealt experts out to tokens")
    assert said.count("\n") == 1
