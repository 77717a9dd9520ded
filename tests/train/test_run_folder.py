"""A run is its folder: where it is made, what it says of itself, and that nothing lies anywhere else."""

import os
import subprocess
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from harness.run_record import RunRecord
from harness.torchrun import REPOSITORY
from metrics.wandb_file import read_wandb_file, wandb_files

from conf.compose import compose
from conf.schema import JobConfig
from train.config import RunConfig
from train.data.stdlib import open_stdlib
from train.run_folder import new_folder

Job = Callable[[str], RunRecord]


def test_a_run_is_named_by_its_name_or_its_start(trained: Job, launch_folder: Path) -> None:
    """Two processes each, of which only the first decides: they would not agree on the time."""
    runs = launch_folder / "runs"
    named, ddp, fsdp = (trained(name).folder for name in ("single fp64", "ddp fp64", "fsdp fp64"))
    assert named == runs / "foo"
    assert ddp.name.split("-")[2:4] == ["tiny", "ddp"]
    assert fsdp.name.split("-")[2:4] == ["tiny", "fsdp"]
    assert set(runs.iterdir()) == {named, ddp, fsdp}


def test_two_runs_of_one_second_get_two_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", iter((101, 102)).__next__)
    assert new_folder(RunConfig(), "tiny", "ddp") != new_folder(RunConfig(), "tiny", "ddp")


def test_nothing_lies_outside_the_folder(trained: Job, launch_folder: Path) -> None:
    outside = {trained(name).folder for name in ("single fp32", "ddp fp32")}
    assert not any(launch_folder in folder.parents for folder in outside)
    trained("single fp64")
    assert os.listdir(launch_folder) == ["runs"]  # no outputs/, .hydra/, multirun/ or wandb/
    for folder in outside:
        assert os.listdir(folder.parent) == [folder.name]


def test_the_folder_holds_what_its_description_says(trained: Job) -> None:
    plain = {"config.yaml", "metrics.jsonl", "summary.json", "ledger", "checkpoints"}
    assert set(os.listdir(trained("fsdp fp64").folder)) == plain
    assert set(os.listdir(trained("ddp fp32").folder)) == plain | {"wandb"}
    assert trained("fsdp fp64").saved_steps == [15, 20]  # checkpoint.keep=2
    # One file a rank: both ranks saved into the one folder.
    shards = (trained("fsdp fp64").folder / "checkpoints" / "step-00000020").glob("*.distcp")
    assert len(list(shards)) == 2


def test_config_yaml_says_what_ran_and_on_what(trained: Job, words_of: Callable[[str], tuple[str, ...]]) -> None:
    record = trained("ddp fp32")
    config = record.config
    environment = config.pop("environment")
    assert config == yaml.safe_load(compose([*words_of("ddp fp32"), f"run.dir={record.folder}"]).yaml)
    assert set(config) == {part.name for part in fields(JobConfig)}
    assert environment["world_size"] == environment["ranks_per_node"] == 2
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["corpus_sha256"] == open_stdlib(128, seed=0).fingerprint
    assert environment["peak_tflops"] > 0
    assert environment["device"].startswith("cpu: ")
    git = subprocess.run(["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"], capture_output=True, text=True)
    assert (environment["git_commit"] or "").removesuffix("+dirty") == git.stdout.strip()


def test_wandb_holds_what_metrics_jsonl_holds(trained: Job) -> None:
    record = trained("ddp fp32")
    (path,) = wandb_files(record.folder)
    run = read_wandb_file(path)
    assert len(run.history) == 20 + 1  # of the books
    assert run.history == record.rows
    page = run.pages["goodput/waterfall"]
    assert "init_process" in (path.parent / "files" / page["path"]).read_text()
    assert run.config == record.config
    assert run.exit_code == 0
    # logging=off loses no metric of the file's; what is waited for is named for who sends it.
    assert {key.replace("/fsdp", "/dp") for key in trained("fsdp fp64").rows[0]} == run.history[0].keys()
