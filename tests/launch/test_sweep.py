"""`switchyard sweep`: a sweep of two points that run, one that fails and one that is refused; looked at, torn, and gone
on with."""

import csv
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness.left_behind import ranks_in, wait_for
from harness.run_record import RunRecord
from harness.slurm_stub import slurm_stub

from launch.cli import main
from launch.jobs.points import Point
from launch.sweep.order import SweepOrder
from launch.sweep.point_job import PointJob, State
from launch.sweep.results import write_results
from train.data.file_lock import FileLock
from train.metrics.expert_load import read_expert_load

WORDS = ["nproc=1", "model=tiny", "strategy=single,ddp,hsdp", "data=synthetic", "train.steps=3"]
LOST = ["nproc=1", "model=tiny", "strategy=ddp,hsdp", "data=tokens", "data.path=/nowhere", "train.steps=3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep after its first command."""
    folder = tmp_path_factory.mktemp("sweep") / "s"
    assert run(folder) == 0
    return folder


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    shutil.copytree(folder, tmp_path / "s")
    return tmp_path / "s"


def run(folder: Path, *more: str) -> int:
    return main(["sweep", f"sweep.dir={folder}", *WORDS, *more])


def points(folder: Path) -> dict[str, dict[str, Any]]:
    content = json.loads((folder / "results.json").read_text(), parse_constant=pytest.fail)
    return {point["point"]: point for point in content["points"]}


def test_every_combination_is_a_point_and_what_cannot_run_is_refused(folder: Path) -> None:
    found = points(folder)
    assert {name: point["state"] for name, point in found.items()} == {
        "single": "done",
        "ddp": "done",
        "hsdp": "refused",
    }
    assert found["hsdp"]["why"].startswith("refused: strategy.dp_shard=2 takes a multiple of 2 ranks")
    assert not (folder / "runs" / "hsdp.json").exists()
    assert {found[name]["strategy"] for name in ("single", "ddp")} == {"single", "ddp"}
    assert found["single"]["loss_last"] == found["ddp"]["loss_last"]
    assert found["single"]["steps"] == 3


def test_runs_share_a_group_in_wandb_and_bear_their_points_names(folder: Path) -> None:
    for name in ("single", "ddp"):
        record = RunRecord(folder / "runs" / name)
        assert record.config["logging"]["wandb_group"] == folder.name
        assert record.config["logging"]["wandb"] == "offline"
    order = SweepOrder.parse([f"sweep.dir={folder}", *WORDS, "logging.wandb_group=mine"])
    assert all("logging.wandb_group=mine" in job.words for job in order.jobs)


def test_every_experts_load_is_written_and_the_same_in_every_layout(folder: Path) -> None:
    loads = read_expert_load(folder / "runs" / "single")
    assert [step for step, _ in loads] == [1, 3]  # those with a row
    config = RunRecord(folder / "runs" / "single").config
    pairs = config["train"]["global_batch_size"] * config["data"]["sequence_length"] * config["model"]["moe"]["top_k"]
    assert all(sum(experts) == pairs for _, layers in loads for experts in layers)
    assert read_expert_load(folder / "runs" / "ddp") == loads
    order = SweepOrder.parse([f"sweep.dir={folder}", *WORDS, "measure.expert_load=false"])
    assert all("measure.expert_load=false" in job.words for job in order.jobs)


def test_the_tables_hold_the_same_rows(folder: Path) -> None:
    rows = list(points(folder).values())
    with (folder / "results.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert table == [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows]
    parquet = pytest.importorskip("pyarrow.parquet", reason="results.parquet needs pyarrow")
    assert parquet.read_table(folder / "results.parquet").to_pylist() == rows


def test_a_number_that_is_none_is_named(tmp_path: Path) -> None:
    write_results(tmp_path, [{"point": "a", "loss_last": float("nan")}], "switchyard sweep")
    assert points(tmp_path)["a"]["loss_last"] == "NaN"
    assert "NaN" in (tmp_path / "results.csv").read_text()


def test_the_same_words_do_what_is_not_done(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One was cut off before it saved, another after its last save but one: they alone run."""
    torn = copied / "runs" / "ddp"
    (torn / "summary.json").unlink()
    before = (copied / "runs" / "single.log").stat().st_mtime_ns
    assert run(copied) == 0
    assert (copied / "runs" / "single.log").stat().st_mtime_ns == before
    assert "ddp: was cut off, and goes on from its checkpoint after step 3" in capsys.readouterr().out
    found = points(copied)
    assert (found["ddp"]["state"], found["ddp"]["starts"], found["single"]["starts"]) == ("done", 2, 1)


def test_what_failed_is_on_record_and_runs_again_only_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", f"sweep.dir={tmp_path / 's'}", *LOST]
    log = tmp_path / "s" / "runs" / "ddp.log"
    assert main(words) == 1
    found = points(tmp_path / "s")
    assert {name: one["state"] for name, one in found.items()} == {"ddp": "failed", "hsdp": "refused"}
    assert found["ddp"]["why"].startswith("exit code 2: /nowhere does not exist: set data.path")
    out = capsys.readouterr().out
    assert "2 points: 1 failed, 1 refused; retry=true runs what failed again" in out
    assert f"ddp: {found['ddp']['why']}" in out
    before = log.stat().st_mtime_ns
    assert main(words) == 1
    assert log.stat().st_mtime_ns == before
    assert main([*words, "retry=true"]) == 1
    assert log.stat().st_mtime_ns > before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["strategy=ddp"], "where do results go? write sweep.dir=FOLDER"),
        (["sweep.dir=s", "run.name=x"], "run.name=x: sweep names the run folders, in sweep.dir=FOLDER; leave it out"),
        (["sweep.dir=s", "strategy=ddp,fsdpp"], "fsdpp: strategy=fsdpp: no such strategy; did you mean fsdp?"),
        (["sweep.dir=s", "train.stepps=1,2"], "stepps=1: unknown key 'train.stepps'"),
        (["sweep.dir=s", "optim.lr=interval(0,1)"], "optim.lr=interval(0,1): name the values"),
        (
            ["sweep.dir=s", "nproc=3", "strategy=single,tp"],
            "none of 2 points can run; single: strategy=single is",
        ),
        (["sweep.dir=~nosuchuser/s", "strategy=ddp"], "sweep.dir=~nosuchuser/s: Could not determine home directory."),
        (["sweep.dir=s", "strategy=ddp", "optim.lr=1e-3,1e+3", "data.path=a/b,a-b"], "two points are called "),
        (["sweep.dir=s", "retry=maybe"], "retry=maybe: set it to true or false"),
        (["sweep.dir=s", "--slurm", "strategy=ddp"], "how many ranks a node? write gpus_per_node=G"),
        (
            ["sweep.dir=s", "--slurm", "nproc=2", "nodes=1", "gpus_per_node=1"],
            "nproc= is for this machine: ",
        ),
    ],
)
def test_a_slip_is_one_line_before_anything_runs(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", *words]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"switchyard: {said}")
    assert err.count("\n") == 1
    assert out == ""
    assert not list(tmp_path.iterdir())


def test_other_words_in_a_folder_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "train.seed=7") == 2
    err = capsys.readouterr().err
    assert "runs/single was run with nproc=1 " in err
    assert err.endswith("name another folder in sweep.dir=\n")


def test_a_folder_is_one_sweeps_at_a_time(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FileLock(copied / ".lock") as other:
        assert other.try_acquire()
        assert run(copied) == 2
    assert "another sweep runs there" in capsys.readouterr().err


def test_cfg_job_prints_every_point_and_runs_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "s", "--cfg", "job") == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("#")] == ["# single", "# ddp", "# hsdp"]
    assert not (tmp_path / "s").exists()


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return slurm_stub(tmp_path / "slurm", monkeypatch)


def test_slurm_takes_each_point_and_the_same_words_collect(
    folder: Path, slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swept = tmp_path / "q"
    words = ["sweep", "--slurm", "nodes=1", "ranks_per_node=1", "--partition=cpu", f"sweep.dir={swept}", *WORDS[1:]]
    assert main([*words, "--dry-run"]) == 0
    assert not swept.exists()
    assert main(words) == 0
    assert "single: job 1 of SLURM" in capsys.readouterr().out
    submitted = (slurm / "submitted").read_text().splitlines()
    assert len(submitted) == 2
    assert "--partition=cpu" in submitted[0]
    assert f"--output={swept / 'runs' / 'single.log'}" in submitted[0]
    assert submitted[0].endswith(f"run.dir={swept / 'runs' / 'single'}")

    (slurm / "state-1").write_text("JobId=1 JobName=a\n   JobState=RUNNING Reason=None\n   ExitCode=0:0\n")
    (slurm / "state-2").write_text("JobId=2 JobName=b\n   JobState=PENDING Reason=None\n")
    assert main(words) == 0
    assert {name: point["state"] for name, point in points(swept).items()} == {
        "single": "queued",
        "ddp": "queued",
        "hsdp": "refused",
    }
    shutil.copytree(folder / "runs" / "single", swept / "runs" / "single")
    (swept / "runs" / "ddp.log").write_text("job 2, start 1\nswitchyard: no space left\n")
    (slurm / "state-2").unlink()  # forgotten, as SLURM does after minutes
    assert main(words) == 1
    found = points(swept)
    assert (found["single"]["state"], found["ddp"]["state"]) == ("done", "failed")
    assert found["ddp"]["why"] == "exit code 1: no space left"
    assert len((slurm / "submitted").read_text().splitlines()) == 2
    (swept / "runs" / "ddp" / "checkpoints").mkdir(parents=True)
    assert main([*words, "retry=true"]) == 0
    assert points(swept)["ddp"]["state"] == "queued"
    assert not (swept / "runs" / "ddp").exists()
    assert not (swept / "runs" / "ddp.log").exists()
    assert len((slurm / "submitted").read_text().splitlines()) == 3


def test_steps_that_cannot_be_divided_leave_a_point_its_numbers(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither its row nor its page ends a sweep that is done."""
    for name in ("single", "ddp"):
        with (copied / "runs" / name / "metrics.jsonl").open("a") as file:
            file.write("5\n")
    assert run(copied) == 0
    out, err = capsys.readouterr()
    assert "switchyard: no report.html: " in err
    assert "single: without parts of a step: " in out
    found = points(copied)["single"]
    assert (found["state"], found["exposed_comm_s"], found["loss_last"] is None) == ("done", None, False)


def test_a_point_that_is_left_undone_is_no_success(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It was asked to stop, and the file that asks is still there."""
    torn = copied / "runs" / "ddp"
    (torn / "summary.json").unlink()
    (torn / "STOP").touch()
    assert run(copied) == 1
    assert f"ddp: {torn / 'STOP'} asks it to stop: remove it, and the same words go on" in capsys.readouterr().out
    assert points(copied)["ddp"]["state"] == "cut off"


def test_help_is_there_for_slurm_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["sweep", "--slurm", "--partition=p", "--help"])
    assert end.value.code == 0
    assert "each point a job of SLURM" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ending", "exit_code"),
    [
        pytest.param(signal.SIGINT, 130, id="ctrl_c"),
        pytest.param(signal.SIGKILL, -9, id="killed", marks=pytest.mark.soak),
    ],
)
def test_an_end_from_outside_ends_the_ranks_and_leaves_what_goes_on(
    ending: signal.Signals, exit_code: int, tmp_path: Path
) -> None:
    words = ["nproc=1", "model=tiny", "strategy=ddp,fsdp", "train.log_every=1", "logging=off", "checkpoint.every=5"]
    command = [sys.executable, "-m", "launch.cli", "sweep", f"sweep.dir={tmp_path / 's'}", *words]

    def heard() -> None:  # also where this suite is run in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(
        [*command, "train.steps=100000"], stdout=subprocess.DEVNULL, start_new_session=True, preexec_fn=heard
    )
    runs = tmp_path / "s" / "runs"
    try:
        wait_for(lambda: (runs / "ddp" / "checkpoints" / "step-00000005" / "manifest.json").exists())
        process.send_signal(ending)
        assert process.wait(60) == exit_code
    finally:
        if process.poll() is None:
            process.terminate()  # its ranks go with it
            process.wait(60)
    wait_for(lambda: not ranks_in(tmp_path))
    assert not (runs / "fsdp.log").exists()
    point = Point("ddp", ())
    left = PointJob(name="ddp", words=(), runs=runs, nproc=1, point=point, refusal=None)
    assert left.state is State.cut_off
    saved = RunRecord(left.folder).saved_steps
    assert left.goes_on == f"its checkpoint after step {saved[-1]}"
    if ending is signal.SIGINT:  # it was told, and saved after the step that it was in
        assert saved[-1] == RunRecord(left.folder).last_step
