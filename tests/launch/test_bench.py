"""`switchyard bench`: one comparison on two gloo ranks, looked at, torn and gone on with."""

import json
import os
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness.left_behind import ranks_in, wait_for
from harness.measured_machine import make_measured

from conf.compose import compose
from launch.bench.machine import measure_machine
from launch.cli import main
from launch.jobs.patient_run import run_to_end
from launch.local import rank_environment, torchrun_arguments
from parallel.mesh import Degrees
from parallel.traffic.predict import predict_traffic
from parallel.traffic.step_shape import StepShape
from train.data.file_lock import FileLock
from train.metrics.breakdown import row_key

SVG = "{http://www.w3.org/2000/svg}"
LIMITS = Path(__file__).with_name("limits.yaml")
WORDS = ["nproc=2", "rounds=2", "model=tiny", "train.steps=6", "train.log_every=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of two points that run and one whose ranks find no tokens, after its first command."""
    folder = tmp_path_factory.mktemp("bench") / "b"
    make_measured(folder, nproc=2)
    configs = folder.parent / "points.yaml"
    lost = ["strategy=ddp", "data=tokens", f"data.path={folder.parent / 'nowhere'}"]
    configs.write_text(json.dumps({"copies": ["strategy=ddp"], "shards": ["strategy=fsdp"], "lost": lost}))
    assert run(folder) == 1
    return folder


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    shutil.copytree(folder.parent, tmp_path / "copy")
    return tmp_path / "copy" / folder.name


def run(folder: Path, *more: str) -> int:
    return main(["bench", f"to={folder}", f"configs={folder.parent / 'points.yaml'}", *WORDS, *more])


def run_two(folder: Path, *more: str) -> int:
    """The points that ran, again: no job is started, for all are done."""
    configs = folder.parent / "two.yaml"
    configs.write_text(json.dumps({"copies": ["strategy=ddp"], "shards": ["strategy=fsdp"]}))
    return main(["bench", f"to={folder}", f"configs={configs}", *WORDS, *more])


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "bench.json").read_text(), parse_constant=pytest.fail)


def point(folder: Path, name: str) -> dict[str, Any]:
    return next(point for point in read(folder)["points"] if point["name"] == name)


def test_every_point_has_its_rounds_their_median_and_spread(folder: Path) -> None:
    content = read(folder)
    assert {point["name"] for point in content["points"][:2]} == {"copies", "shards"}
    speeds = [point["tokens_per_sec"]["median"] for point in content["points"][:2]]
    assert speeds == sorted(speeds, reverse=True)
    for point in content["points"][:2]:
        of_rounds = sorted(one["summary"]["tokens_per_sec"] for one in point["rounds"])
        spread = point["tokens_per_sec"]
        assert (spread["least"], spread["most"]) == (of_rounds[0], of_rounds[1])
        assert spread["median"] == pytest.approx(sum(of_rounds) / 2)
        assert spread["iqr"] == pytest.approx((of_rounds[1] - of_rounds[0]) / 2)
        assert {one["summary"]["steps"] for one in point["rounds"]} == {6}
        assert point["step_time_s"]["median"] > 0
        assert 0 < point["mfu"]["median"] < 1
        assert {line["category"] for line in point["roofline"]} == {
            "dense_gemm",
            "expert_gemm",
            "attention",
            "optimizer",
        }
        assert all(line["ceiling"] > 0 and line["work"] > 0 for line in point["roofline"])
    assert content["machine"]["ranks"] == 2
    assert content["command"].startswith("switchyard bench to=")


def test_rounds_go_forth_and_back(folder: Path) -> None:
    started = {path.stem: path.stat().st_mtime_ns for path in (folder / "runs").glob("*.log")}
    order = sorted(started, key=started.__getitem__)
    assert order == ["copies-r1", "shards-r1", "lost-r1", "lost-r2", "shards-r2", "copies-r2"]


def test_a_point_that_failed_is_on_record_and_the_others_went_on(folder: Path) -> None:
    lost = point(folder, "lost")
    assert "tokens_per_sec" not in lost
    assert [one["failure"]["exit_code"] for one in lost["rounds"]] == [2, 2]
    said = lost["rounds"][0]["failure"]["last_lines"]
    assert any(line.startswith("switchyard: ") and "nowhere does not exist: set data.path" in line for line in said)


def test_the_picture_has_a_bar_for_each_point_with_numbers(folder: Path) -> None:
    root = ElementTree.parse(folder / "bench.svg").getroot()
    said = [element.text or "" for element in root.iter(f"{SVG}text")]
    assert {"copies", "shards"} <= set(said)
    assert "lost" not in said
    assert sum("tokens/s, MFU" in text for text in said) == 2


def test_the_same_words_do_what_is_not_done(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One result is gone and a run was cut off: that one alone runs, from its beginning."""
    before = {path: path.stat().st_mtime_ns for path in (copied / "runs").glob("*.log")}
    torn = copied / "runs" / "shards-r2"
    (torn / "summary.json").unlink()
    record = json.loads(torn.with_suffix(".json").read_text())
    rows = (torn / "metrics.jsonl").read_text()
    torn.with_suffix(".json").write_text(json.dumps(record | {"exit_code": None}))
    assert run(copied) == 1
    after = {path: path.stat().st_mtime_ns for path in (copied / "runs").glob("*.log")}
    assert [path.stem for path in after if after[path] != before[path]] == ["shards-r2"]
    assert len((torn / "metrics.jsonl").read_text().splitlines()) == len(rows.splitlines())
    out = capsys.readouterr().out
    assert "lost: 2 of 2 jobs failed, exit code 2:" in out
    assert "2 of 2" in out
    assert "0 of 2" in out


def test_where_steps_went_is_read_from_their_rows(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows as a divided step has them, and a traced job's as a GPU's."""
    divided = {"compute_fwd": 0.02, "compute_bwd": 0.05, "exposed_comm/fsdp": 0.03, "wall": 0.1}
    for number in (1, 2):
        path = copied / "runs" / f"shards-r{number}" / "metrics.jsonl"
        rows = [
            {key: value for key, value in json.loads(line).items() if not key.startswith("time")}
            for line in path.read_text().splitlines()
        ]
        extra = {row_key(bucket): seconds * number for bucket, seconds in divided.items()}
        path.write_text("".join(json.dumps(row | extra) + "\n" for row in rows))
    for name in ("copies", "shards"):
        job = copied / "runs" / f"{name}-trace"
        shutil.copytree(job.with_name(f"{name}-r1"), job)
        record = json.loads(job.with_name(f"{name}-r1.json").read_text())
        record["words"] += ["measure.trace_every=4", "measure.trace_limit=1"]
        job.with_suffix(".json").write_text(json.dumps(record))
    trace = copied / "runs" / "shards-trace" / "traces" / "step-00000004" / "rank-0.summary.json"
    trace.parent.mkdir(parents=True)
    trace.write_text(json.dumps(swept(0.1, {"dense_gemm": 0.06, "optimizer": 0.01})))
    speed = point(copied, "shards")["tokens_per_sec"]
    summary = copied / "runs" / "shards-trace" / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"tokens_per_sec": 1.0}))
    assert run_two(copied, "trace=true") == 0
    out = capsys.readouterr().out
    shards = point(copied, "shards")
    assert shards["tokens_per_sec"] == speed
    assert [one["round"] for one in shards["rounds"]] == [1, 2]
    assert shards["traced"]["trace"]["span_s"] == 0.1
    assert shards["breakdown_s"] == pytest.approx({bucket: 1.5 * seconds for bucket, seconds in divided.items()})
    assert shards["bound_by"].startswith("communication (fsdp), 30% of a step; try ")
    assert f"shards: bound by {shards['bound_by']}" in out
    work = {line["category"]: line for line in shards["roofline"]}
    assert work["dense_gemm"]["rate"] == pytest.approx(work["dense_gemm"]["work"] / 0.06)
    assert work["expert_gemm"]["rate"] is None
    assert work["optimizer"]["kernel_s"] == 0.01
    assert "dense gemm 60.0, " in out
    counts = shards["counts"]
    assert (counts["kernels"], counts["kernels_a_layer"], counts["kernels/optimizer"]) == (32, 10.7, 2)
    assert (counts["host_waits"], counts["host_waits/log"]) == (1, 9)
    titles = [element.text for element in ElementTree.parse(copied / "bench.svg").getroot().iter(f"{SVG}title")]
    assert "shards: exposed_comm/fsdp 45 ms" in titles
    assert not [title for title in titles if title and title.startswith("copies: exposed_comm/fsdp")]


def swept(span_s: float, by_category: dict[str, float]) -> dict[str, Any]:
    """What is read of a trace's summary."""
    counted = {"launched_by_category": {"dense_gemm": 30, "optimizer": 2}, "host_waits": {"compute_opt": 1, "log": 9}}
    waited = {"idle_s": 0.001, "host_gaps_s": 0.0005, "n_host_gaps": 3, "communication_s": 0.01}
    return {"source": "kernels", "span_s": span_s, "compute_by_category_s": by_category, **waited, **counted}


def limited(folder: Path, limits: object) -> int:
    if isinstance(limits, Path):
        file = limits
    else:
        file = folder.parent / "limits.yaml"
        file.write_text(json.dumps(limits))
    return run_two(folder, f"limits={file}")


def test_counts_are_within_their_limits_and_those_are_tight(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The guard of every change to what these layouts say: a byte or a call more, and this fails."""
    assert limited(copied, LIMITS) == 0
    captured = capsys.readouterr()
    assert "above its limit" not in captured.err
    assert "counts of one step" in captured.out
    for name, limits in yaml.safe_load(LIMITS.read_text()).items():
        counts = point(copied, name)["counts"]
        assert {count: counts[count] for count in limits} == limits


@pytest.mark.parametrize("name", ["copies", "shards"])
def test_bytes_are_those_of_the_closed_form(folder: Path, name: str) -> None:
    job = compose(point(folder, name)["words"]).config
    degrees = Degrees.resolve(job.strategy, 2)
    micro_batch, n_micro_batches = (of(degrees.dp, 1) for of in (job.train.micro_batch, job.train.micro_batches))
    step = StepShape(n_micro_batches, micro_batch, job.data.sequence_length)
    said = predict_traffic(job.model, job.strategy, job.overlap, job.precision, degrees, step).rows()
    counts = point(folder, name)["counts"]
    assert counts["collectives"] == sum(calls for *_, calls, _ in said)
    assert {key.removeprefix("bytes/"): n for key, n in counts.items() if key.startswith("bytes/")} == {
        f"{kind}/{operation}": n_bytes for kind, operation, _, _, n_bytes in said
    }


def test_a_count_above_its_limit_or_not_counted_is_a_line_and_an_exit_code(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    n_bytes = point(copied, "copies")["counts"]["bytes/dp/all_reduce"]
    limits = {"copies": {"bytes/dp/all_reduce": n_bytes - 1, "bytes/fsdp/all_gather": 0}, "shards": {"host_waits": 0}}
    assert limited(copied, limits) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if "limit" in line]
    assert said == [
        f"switchyard: copies: bytes/dp/all_reduce {n_bytes:,} is above its limit of {n_bytes - 1:,}",
        "switchyard: shards: host_waits has a limit of 0 and was not counted: it takes trace=true, and a GPU",
    ]


def test_other_words_in_a_folder_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "train.seed=7") == 2
    err = capsys.readouterr().err
    assert "copies-r1 was run with nproc=2 " in err
    assert err.count("\n") == 1


@pytest.mark.soak
def test_what_failed_is_run_again_when_asked(copied: Path) -> None:
    configs = copied.parent / "lost.yaml"
    configs.write_text(json.dumps({"lost": json.loads((copied.parent / "points.yaml").read_text())["lost"]}))
    log = copied / "runs" / "lost-r1.log"
    before = log.stat().st_mtime_ns
    words = ["bench", f"to={copied}", f"configs={configs}", "nproc=2", "rounds=1", *WORDS[2:]]
    assert main(words) == 1
    assert log.stat().st_mtime_ns == before
    assert main([*words, "retry=true"]) == 1
    assert log.stat().st_mtime_ns > before


def test_a_summary_that_cannot_be_read_is_refused_before_a_job_runs(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "runs" / "copies-r1" / "summary.json").unlink()
    (copied / "runs" / "shards-r1" / "summary.json").write_text('{"steps": 6}')
    assert run(copied) == 2
    assert "shards-r1/summary.json is not this version's: remove it" in capsys.readouterr().err
    assert not (copied / "runs" / "copies-r1" / "summary.json").exists()


def test_a_folder_is_one_benchs_at_a_time(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (copied / "bench.json").stat().st_mtime_ns
    with FileLock(copied / ".lock") as other:
        assert other.try_acquire()
        assert run(copied) == 2
    assert "another bench runs there" in capsys.readouterr().err
    assert (copied / "bench.json").stat().st_mtime_ns == before
    assert run(copied) == 1


def test_what_lasts_too_long_is_ended_with_its_ranks(tmp_path: Path) -> None:
    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text("import pathlib, sys, time\npathlib.Path(sys.argv[1]).touch()\ntime.sleep(600)\n")
    command = [sys.executable, "-m", "launch.local", *torchrun_arguments(1, [str(sleeper), str(tmp_path / "there")])]
    log = tmp_path / "log"
    with log.open("w") as output, pytest.raises(subprocess.TimeoutExpired):
        run_to_end(command, os.environ | rank_environment(1), output.fileno(), timeout_s=15.0)
    assert (tmp_path / "there").exists(), log.read_text()  # or there was nothing to end
    assert not ranks_in(tmp_path)


def test_a_measurement_that_lasts_too_long_is_said(tmp_path: Path) -> None:
    machine = measure_machine(tmp_path, "cpu", 1, timeout_s=0.1)
    assert machine.ceilings is None
    assert machine.complaints == ["ceilings.json: not measured in 0.1 s"]


@pytest.mark.soak
def test_bandwidths_are_of_so_many_ranks(tmp_path: Path) -> None:
    """Another number of ranks in the same folder has its own; and ceilings of before are measured again."""
    (tmp_path / "bus-3.json").write_text('{"all_reduce_gbs": 3.0}')
    (tmp_path / "ceilings.json").write_text('{"device": "cpu"}')
    machine = measure_machine(tmp_path, "cpu", 2)
    assert machine.complaints == []
    assert machine.bus.keys() == {"all_reduce_gbs", "all_gather_gbs", "all_to_all_gbs"}
    assert machine.ceilings is not None
    assert machine.ceilings.dtype == "float32"
    assert (tmp_path / "bus-3.json").read_text() == '{"all_reduce_gbs": 3.0}'


@pytest.mark.parametrize(
    ("ending", "exit_code"),
    [
        pytest.param(signal.SIGINT, 130, id="ctrl_c", marks=pytest.mark.soak),  # a sweep's is in `make test`
        pytest.param(signal.SIGHUP, 129, id="lost_terminal", marks=pytest.mark.soak),
    ],
)
def test_an_end_from_outside_ends_the_ranks_and_leaves_what_goes_on(
    ending: signal.Signals, exit_code: int, tmp_path: Path
) -> None:
    words = [f"to={tmp_path / 'b'}", "rounds=1", "model=tiny", "strategy=ddp,fsdp", "train.log_every=1"]
    command = [sys.executable, "-m", "launch.cli", "bench", *words, "nproc=1", "train.steps=100000"]

    def heard() -> None:  # also where this suite is run in the background, or under nohup
        signal.signal(ending, signal.SIG_DFL)

    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True, preexec_fn=heard)
    log = tmp_path / "b" / "runs" / "ddp-r1.log"
    try:
        wait_for(lambda: log.exists() and "step 3/" in log.read_text())
        process.send_signal(ending)
        assert process.wait(60) == exit_code
    finally:
        if process.poll() is None:
            process.terminate()  # its ranks go with it; killed, it would leave them
            process.wait(60)
    wait_for(lambda: not ranks_in(tmp_path))
    record = json.loads(log.with_suffix(".json").read_text())
    assert record["exit_code"] is None
    assert not (log.with_suffix("") / "summary.json").exists()
    assert not log.with_name("fsdp-r1.log").exists()
    shutil.rmtree(tmp_path / "b")
