"""`switchyard`: its commands, its own words, and its exit codes."""

import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import launch.local
from launch.cli import COMMANDS, main
from launch.local import rank_environment, take_nproc, torchrun_arguments
from launch.show import curve
from models.config import ConfigError

TINY = ["train", "nproc=2", "model=tiny"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What torchrun was asked to start; nothing is."""
    asked: list[list[str]] = []
    monkeypatch.setattr(launch.local.torchrun, "parse_args", lambda words: words)
    monkeypatch.setattr(launch.local.torchrun, "run", asked.append)
    for name in rank_environment(1):  # set by the command in its own process
        monkeypatch.setenv(name, "")
    monkeypatch.delenv("OMP_NUM_THREADS")
    return asked


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], f"no command given; choose from {', '.join(COMMANDS)} (switchyard --help)"),
        (
            ["trian"],
            f"no command 'trian'; did you mean train? choose from {', '.join(COMMANDS)} (switchyard --help)",
        ),
        (["nproc=2"], f"no command 'nproc=2'; choose from {', '.join(COMMANDS)} (switchyard --help)"),
        (["train", "nproc=0"], "nproc=0: set it to the number of ranks, at least 1"),
        (["train", "nproc=two"], "nproc=two: set it to the number of ranks, at least 1"),
        (["train", "nproc="], "nproc=: set it to the number of ranks, at least 1"),
        (["train", "nproc=-1"], "nproc=-1: set it to the number of ranks, at least 1"),
        (["train", "nproc=2.0"], "nproc=2.0: set it to the number of ranks, at least 1"),
        (["train", "nproc=²"], "nproc=²: set it to the number of ranks, at least 1"),
        (["train", "nproc=2", "model=tinny"], "model=tinny: no such model; did you mean tiny? "),
        (["train", "nproc=3", "model=tiny"], "train.global_batch_size=16 is not divisible by 3 data-parallel ranks: "),
        (["train", "nproc=2", "strategy=single"], "strategy=single is 1 rank, and 2 were started: "),
        (["train", "nproc=1", "+nproc=2"], "+nproc=2: the number of ranks is the launcher's: "),
        (["show"], "show takes one run folder: switchyard show runs/NAME"),
        (["trace"], "trace takes run folders and trace files: switchyard trace runs/NAME"),
        (["show", "a", "b"], "show takes one run folder: switchyard show runs/NAME"),
    ],
)
def test_a_refusal_is_one_line_and_code_2(
    words: list[str], said: str, started: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"switchyard: {said}")
    assert err.count("\n") == 1
    assert (out, started) == ("", [])


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["show", "--help"]])
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert "switchyard train [nproc=N] [restarts=K] [key=value …]" in capsys.readouterr().out


def test_train_has_help_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["train", "--help"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("switchyard train [nproc=N] [restarts=K] [key=value …] [--cfg job] [--config-dir DIR]")


def test_cfg_job_prints_and_starts_nothing(started: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--cfg", "job", "train.seed=7"]) == 0
    assert "\n  seed: 7\n" in capsys.readouterr().out
    assert started == []


def test_train_starts_its_words_through_torchrun(started: list[list[str]]) -> None:
    assert main([*TINY, "train.steps=3"]) == 0
    assert started == [["--standalone", "--nproc-per-node=2", "-m", "train", "model=tiny", "train.steps=3"]]


def test_torchrun_takes_the_arguments() -> None:
    from torch.distributed.run import parse_args

    parsed = parse_args(torchrun_arguments(3, ["-m", "train", "model=tiny", "--config-dir", "mine"]))
    assert (parsed.nproc_per_node, parsed.standalone, parsed.module) == ("3", True, True)
    assert [parsed.training_script, *parsed.training_script_args] == ["train", "model=tiny", "--config-dir", "mine"]


def failed(exitcode: int) -> ChildFailedError:
    return ChildFailedError("train", {0: ProcessFailure(local_rank=0, pid=1, exitcode=exitcode, error_file="")})


@pytest.mark.parametrize(
    ("end", "code"),
    [(failed(1), 1), (failed(2), 2), (failed(-9), 137), (SignalException("stopped", signal.SIGTERM), 143)],
)
def test_the_exit_code_is_that_of_the_rank_that_ended_it(
    end: Exception, code: int, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(_: Any) -> None:
        raise end

    monkeypatch.setattr(launch.local.torchrun, "run", run)
    assert main(TINY) == code


def test_nproc_is_taken_out_of_the_words() -> None:
    assert take_nproc(["model=tiny", "nproc=3", "train.steps=2"]) == (3, ["model=tiny", "train.steps=2"])
    assert take_nproc(["nproc=3", "nproc=4"]) == (4, [])  # the last one counts, as with keys
    with pytest.raises(ConfigError):
        take_nproc(["nproc=4", "nproc=x"])


@pytest.mark.parametrize(("gpus", "nproc"), [(0, 2), (1, 1), (8, 8)])
def test_without_nproc_it_is_one_rank_per_gpu_or_two(gpus: int, nproc: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert take_nproc(["model=tiny"]) == (nproc, ["model=tiny"])


def test_ranks_share_the_cores_unless_the_user_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [rank_environment(n)["OMP_NUM_THREADS"] for n in (1, 5, 24)] == ["12", "2", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert rank_environment(2)["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "has no config.yaml: name the folder of a run that has logged a step"),
        ({"config.yaml": "model: {name: tiny}"}, "has no metrics.jsonl"),
        ({"config.yaml": "model: {name: tiny}", "metrics.jsonl": ""}, "has logged no step yet"),
    ],
)
def test_show_refuses_what_is_no_run(
    files: dict[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert main(["show", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_a_curve_has_a_bar_for_every_part() -> None:
    assert curve([], 10) == ""
    assert curve([2.0], 10) == "▁"
    assert curve([1.0, 1.0, 1.0], 10) == "▁▁▁"
    assert curve([3.0, 2.0, 1.0], 10) == "█▅▁"
    assert curve([8.0, 6.0, 4.0, 2.0], 2) == "█▁"  # means of two
    assert curve([1.0, 2.0], 0) == "▁"  # a terminal too narrow for any
    assert len(curve([float(i) for i in range(1000)], 80)) == 80


def test_a_curve_survives_a_run_that_diverged() -> None:
    assert curve([3.0, math.nan, 1.0, math.inf], width=10) == "█×▁×"
    assert curve([math.nan], width=10) == "×"
