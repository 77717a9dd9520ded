"""`switchyard overlap`: which jobs words come to, and the fold from what they left to the table."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from rich.console import Console

from launch.bench.job import Job
from launch.bench.result import PointResult
from launch.cli import main
from launch.jobs.points import Point
from launch.overlap.command import jobs_of
from launch.overlap.knobs import KNOBS, NO_KNOBS, typed
from launch.overlap.proof import Hidden, Order, Proof, compare_losses, issued_earlier
from launch.overlap.request import Request
from launch.overlap.side import Side, Step, busy_s
from launch.overlap.table import print_proofs
from parallel.config import OverlapConfig
from train.metrics.summary import RunSummary
from train.trace.issue_order import Begun

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["nproc=2", "rounds=2", "model=tiny", "train.steps=6"]


def test_every_field_is_a_knob_of_the_right_type() -> None:
    """One that is new is put to the proof, or said to be none."""
    defaults = {each.name: each.default for each in fields(OverlapConfig)}
    assert set(defaults) - set(NO_KNOBS) == set(KNOBS)
    for name, knob in KNOBS.items():
        assert {type(knob.off), type(knob.on)} == {type(defaults[name])}, name
        assert knob.off != knob.on, name


def test_every_knob_is_in_the_docs() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) → (\w+) \|", (ROOT / "docs" / "overlap.md").read_text(), re.MULTILINE)
    assert {name: (off, on) for name, off, on in rows} == {
        name: (typed(knob.off), typed(knob.on)) for name, knob in KNOBS.items()
    }


def parsed(tmp_path: Path, *words: str) -> Request:
    return Request.parse([*words, f"to={tmp_path / 'o'}", *WORDS])


def test_a_side_is_the_typed_words_with_one_knob_turned(tmp_path: Path) -> None:
    request = parsed(tmp_path, "data,param_prefetch", "strategy=fsdp", "overlap=max", "overlap.data=7")
    assert {name: two.values for name, two in request.sides.items()} == {"data": (0, 7), "param_prefetch": (1, 2)}
    assert [point.name for point in request.points] == ["data=0", "typed", "param_prefetch=1"]
    words = {point.name: point.words for point in request.points}
    assert "overlap.data=7" in words["param_prefetch=1"]
    assert "overlap=max" in words["data=0"]
    assert "overlap.data=0" in words["data=0"]
    configs = {name: one.config.overlap for name, one in request.composed.items()}
    assert (configs["data=0"].data, configs["data=0"].param_prefetch) == (0, 2)


def test_both_sides_have_what_a_knob_does_nothing_without(tmp_path: Path) -> None:
    sides = parsed(tmp_path, "checkpoint", "strategy=ddp", "checkpoint.every=2").sides["checkpoint"]
    assert sides.added == ["checkpoint=default"]
    assert [point.name for point in sides.points] == ["checkpoint=false", "checkpoint=true"]
    for point in sides.points:
        assert {"checkpoint=default", "checkpoint.every=2"} <= set(point.words)
        assert "checkpoint=off" not in point.words


def test_jobs_go_forth_and_back_and_the_first_round_traces_its_last_step(tmp_path: Path) -> None:
    jobs = jobs_of(parsed(tmp_path, "grad_reduce", "strategy=ddp"))
    off, on = "grad_reduce=false", "typed"
    assert [job.name for job in jobs] == [f"{off}-r1", f"{on}-r1", f"{on}-r2", f"{off}-r2"]
    for job in jobs:
        assert ("measure.trace_every=6" in job.words) == (job.round == 1)
        assert "train.log_every=5" in job.words


def test_all_are_those_that_the_layout_takes(tmp_path: Path) -> None:
    request = parsed(tmp_path, "--all", "strategy=ddp", "checkpoint=default", "checkpoint.every=2")
    assert {"grad_reduce", "data", "checkpoint"} <= set(request.sides)
    assert request.refused["param_prefetch"].startswith("overlap.param_prefetch: with strategy=ddp no parameter is")
    assert set(request.sides) | set(request.refused) == set(KNOBS)
    assert not {"param_prefetch=1", "param_prefetch=2"} & {point.name for point in request.points}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["strategy=ddp", "to=o"], "which knob? name one or more of grad_reduce, "),
        (["data", "--all", "to=o"], "which knob? name one or more of grad_reduce, "),
        (["grad_reduc", "to=o"], "no knob 'grad_reduc'; did you mean grad_reduce? choose from grad_reduce, "),
        (["name", "to=o"], "no knob 'name'; "),
        (["data", "strategy=ddp"], "where do results go? write to=FOLDER"),
        (["data", "to=o", "strategy=ddp,fsdp"], "strategy: overlap takes one layout at a time; name one value"),
        (["data", "to=o", "run.name=x"], "run.name=x: overlap names the run folders, in to=FOLDER; leave it out"),
        (["data", "to=o", "strategy=dpp"], "strategy=dpp: no such strategy; did you mean pp?"),
        (
            ["data", "to=o", "nproc=2", "train.steps=3"],
            "overlap with train.steps=3: the first step warms up, and ",
        ),
        (
            ["checkpoint", "to=o", "nproc=2", "train.steps=7"],
            "overlap.checkpoint: of train.steps=7 the last two are traced, and a save is in the step after it: ",
        ),
        (["data", "to=o", "nproc=2", "measure=off"], "overlap shows what the clock times: set measure.clock=true"),
        (["param_prefetch", "to=o", "nproc=2", "strategy=tp"], "overlap.param_prefetch: with strategy=tp no parameter"),
        (["grad_reduce", "to=o", "nproc=1", "strategy=single"], "overlap.grad_reduce: with strategy=single nobody is"),
        (
            ["param_prefetch", "to=o", "nproc=2", "strategy=deepspeed_zero3"],
            "overlap.param_prefetch=2: strategy=deepspeed_zero3 does not read it",
        ),
    ],
)
def test_a_refusal_is_one_line_before_anything_runs(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["overlap", "model=tiny", *words]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"switchyard: {said}")
    assert err.count("\n") == 1
    assert out == ""
    assert not list(tmp_path.iterdir())


def test_configurations_are_shown_and_nothing_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["overlap", "data", f"to={tmp_path / 'o'}", *WORDS, "strategy=ddp", "--cfg", "job"]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("#")] == ["# data=0", "# typed"]
    assert not (tmp_path / "o").exists()


EP = "exposed_comm/ep"


def side(exposed: dict[str, float], speeds: list[float], total: dict[str, float] | None, covered: list[int]) -> Side:
    """`covered`: of each all-to-all, how much ran between its start and its wait. A tenth of its kernels is alone."""
    alone = None if total is None else {bucket: 0.1 * seconds for bucket, seconds in total.items()}
    step = Step(total, alone, [Begun("ep", "all_to_all", 10 * i, n) for i, n in enumerate(covered)], (0, 4))
    losses = {number: {1: 4.0, 5: 3.0} for number in range(1, len(speeds) + 1)} | {None: {1: 4.0, 2: 3.5, 5: 3.0}}
    return Side(dict(enumerate(speeds, start=1)), 2.0, exposed, losses, step, "a GPU")


def proof(off: Side, on: Side) -> Proof:
    return Proof.of("shared_experts", (False, True), off, on)


OFF = side({EP: 0.08, "exposed_comm/dp": 0.002}, [100.0, 200.0, 150.0], {EP: 0.1}, [0, 0, 0, 0])
ON = side({EP: 0.01, "exposed_comm/dp": 0.004}, [150.0, 220.0, 180.0], {EP: 0.1}, [2, 1, 3, 0])


def test_the_fold_has_known_answers() -> None:
    folded = proof(OFF, ON)
    rows = {row.bucket: row for row in folded.hidden}
    assert list(rows) == [EP, "exposed_comm/dp"]
    assert rows[EP].claimed
    assert not rows["exposed_comm/dp"].claimed
    assert rows[EP].hidden == pytest.approx(0.9)
    assert rows[EP].taken_off == pytest.approx(0.875)
    assert (rows[EP].order_off, rows[EP].order_on) == (Order(4, 0), Order(4, 3))
    assert rows["exposed_comm/dp"].hidden is None  # the trace has no kernel of it
    assert rows["exposed_comm/dp"].taken_off == pytest.approx(-1.0)
    assert folded.ratio is not None
    assert (folded.ratio.median, folded.ratio.least, folded.ratio.most) == pytest.approx((1.2, 1.1, 1.5))
    assert folded.memory_gib == 0.0
    assert folded.losses is not None
    assert (folded.losses.most, folded.losses.n_steps, folded.losses.reason) == (0.0, 3, None)


def shown(proofs: list[Proof], refused: dict[str, str], device: str) -> str:
    console = Console(width=140)
    with console.capture() as captured:
        print_proofs(proofs, refused, device, console)
    return captured.get()


def test_the_table_says_what_was_folded() -> None:
    lines = shown([proof(OFF, ON)], {}, "cuda").splitlines()
    row = next(line for line in lines if line.strip().startswith("shared_experts"))
    assert row.split() == [
        *("shared_experts", "ep", "100.0", "80.0", "10.0", "90%", "88%", "0", "of", "4", "3", "of", "4"),
        *("1.200", "+0.00", "0"),
    ]
    below = next(line for line in lines if "1.10 – 1.50" in line)
    assert below.split()[:3] == ["false", "→", "true"]
    assert any(line.split()[:4] == ["(dp)", "–", "2.0", "4.0"] for line in lines)
    assert any("those of NCCL last while they wait" in line for line in lines)


def test_a_table_of_several_has_what_they_claim_and_who_was_refused() -> None:
    text = shown([proof(OFF, ON)], {"async_tp": "overlap.async_tp=2: with strategy.tp=1 …"}, "cuda")
    assert "(dp)" not in text
    assert any(line.split() == ["async_tp", "refused"] for line in text.splitlines())
    assert "async_tp: refused: overlap.async_tp=2: with strategy.tp=1 …\n" in text


def test_without_kernels_order_is_all_there_is() -> None:
    on_cpu = proof(side({EP: 0.08}, [100.0], None, [0]), side({EP: 0.01}, [90.0], None, [1]))
    assert on_cpu.hidden[0].total_s is on_cpu.hidden[0].hidden is None
    assert on_cpu.hidden[0].order_on == Order(1, 1)
    text = shown([on_cpu], {}, "cpu")
    assert "there the order is the proof" in text
    assert "NCCL" not in text


def test_a_side_that_failed_has_no_figures() -> None:
    half = proof(OFF, Side())
    assert half.hidden[0].exposed_on_s is half.hidden[0].taken_off is half.ratio is half.memory_gib is half.losses
    assert half.hidden[0].exposed_on_s is None
    assert half.hidden[0].exposed_off_s == 0.08
    lines = shown([half, proof(Side(), Side())], {}, "cuda").splitlines()
    rows = [line.split() for line in lines if line.strip().startswith("shared_experts")]
    assert rows == [
        ["shared_experts", "ep", "–", "80.0", "–", "–", "–", "0", "of", "4", "–", "–", "–", "–"],
        ["shared_experts", "ep", *["–"] * 10],
    ]


def test_totals_are_those_of_kernels() -> None:
    swept = {
        "communication_by_kind_s": {"dp": 0.2, "ep": 0.1},
        "exposed_by_kind_s": {"dp": 0.05},
        "compute_by_category_s": {"optimizer": 0.03, "dense_gemm": 1.0},
    }
    total = {"exposed_comm/dp": 0.2, "exposed_comm/ep": 0.1, "compute_opt": 0.03}
    assert busy_s(swept | {"source": "kernels"}) == (total, {"exposed_comm/dp": 0.05})
    assert busy_s(swept | {"source": "host ranges"}) == busy_s({}) == (None, None)


def test_an_update_is_ahead_where_it_began_in_backward() -> None:
    steps = [Step({"compute_opt": 0.02}, {}, [], updates) for updates in ((0, 8), (6, 8))]
    off, on = (Side({1: 1.0}, None, {"compute_opt": 0.02 / n}, {}, step) for n, step in enumerate(steps, start=1))
    (row,) = Proof.of("optimizer", (False, True), off, on).hidden  # no gradient was reduced: dp has no row
    assert row == Hidden("compute_opt", True, 0.02, 0.01, 0.02, 0.01, Order(8, 0), Order(8, 6), None)
    assert (row.hidden, row.taken_off) == (0.5, 0.5)


def test_what_was_issued_with_less_before_it_is_earlier() -> None:
    off = [Begun("fsdp", "all_gather", after, None) for after in (0, 4, 8)] + [Begun("fsdp", "reduce_scatter", 9, None)]
    on = [Begun("fsdp", "reduce_scatter", 9, None)] + [Begun("fsdp", "all_gather", after, None) for after in (0, 0, 4)]
    assert issued_earlier(off, on, "fsdp") == 2
    assert issued_earlier(off, on[:-1], "fsdp") is None
    assert issued_earlier(off, on, "dp") is None
    assert Order.of(Step(None, None, off, (0, 0)), "exposed_comm/fsdp") == Order(4, None)


@pytest.mark.parametrize(
    ("off", "on", "sums", "most", "reason"),
    [
        ({1: 4.0, 2: 3.0}, {1: 4.0, 2: 3.0}, "x", 0.0, None),
        ({1: 4.0, 2: 3.0}, {1: 4.0, 2: 3.5}, None, 0.5, None),
        ({1: 4.0, 2: 3.0}, {1: 4.0, 2: 3.5}, "x", 0.5, "another order of summation, x (next to 0 with precision=fp64)"),
        ({1: 4.0, 2: 3.0}, {1: 4.0, 2: float("nan")}, "x", float("inf"), None),
        ({1: float("nan"), 2: 3.0}, {1: float("nan"), 2: 3.0}, None, 0.0, None),
    ],
)
def test_losses_are_equal_or_there_is_a_reason(
    off: dict[int, float], on: dict[int, float], sums: str | None, most: float, reason: str | None
) -> None:
    found = compare_losses({1: off}, {1: on}, sums)
    assert found is not None
    assert (found.most, found.reason) == (most, reason)
    assert found.step == (2 if most else None)


def test_losses_that_differ_from_themselves_are_no_knobs_doing() -> None:
    """Of two jobs that were off; two that were on and differ are a race, and no excuse."""
    found = compare_losses({1: {1: 4.0}, 2: {1: 4.25}}, {1: {1: 4.25}, 2: {1: 4.25}}, None)
    assert found is not None
    assert found.reason is not None
    assert found.reason.startswith("two jobs with it off differ by 2.5e-01")
    for times, explained in ((2.75, True), (3.25, False)):
        found = compare_losses({1: {1: 4.0}, 2: {1: 4.25}}, {1: {1: 4.0}, 2: {1: 4.25 + times / 4}}, None)
        assert found is not None
        assert (found.reason is not None) == explained
    raced = compare_losses({1: {1: 4.0}, 2: {1: 4.0}}, {1: {1: 4.0}, 2: {1: 4.25}}, None)
    assert raced is not None
    assert (raced.most, raced.reason) == (0.25, None)


def test_a_side_is_read_from_what_its_jobs_left(tmp_path: Path) -> None:
    """Two rounds: means over steps and rounds, saves too, and every loss that was logged."""
    point = Point("typed", ("model=tiny",))
    jobs = [Job.of(point, number, tmp_path, 2) for number in (1, 2)]
    for job, factor in zip(jobs, (1.0, 2.0), strict=True):
        job.folder.mkdir()
        rows = [
            {
                "train/step": step,
                "train/loss": 4.0 - step / 8,
                "perf/step_time_s": 1.0,
                "time/steps": steps,
                "time/wall_s": 1.0,
                "time/exposed_comm/dp_s": factor * ms * 1e-3,
                **({"time/ckpt_save_s": factor} if step == 5 else {}),
            }
            for step, steps, ms in ((1, 1, 500.0), (5, 4, 10.0), (6, 1, 60.0))
        ]
        (job.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (job.folder / "config.yaml").write_text(
            "environment: {corpus_sha256: x, resumed_after_step: 0}\nmodel: {n_layers: 4}\nstrategy: {pp: 1}\n"
        )
        summary = RunSummary(
            *(
                "run",
                6,
                60,
                4.0,
                3.0,
                None,
                1000.0 * factor,
                1.0,
                0.0,
                None,
                None,
                1.0,
                "x",
                factor,
                2,
                "cpu: x",
                1,
                1,
                9.0,
            )
        )
        summary.write(job.folder / "summary.json")
    read = Side.read(jobs, PointResult.read(jobs))
    assert read.speeds == {1: 1000.0, 2: 2000.0}
    assert read.memory_gib == 1.5
    assert read.exposed_s["exposed_comm/dp"] == pytest.approx(1.5 * (4 * 0.01 + 0.06) / 5)
    assert read.exposed_s["ckpt_save"] == pytest.approx(1.5 * 4 / 5)
    assert read.losses == {number: {1: 3.875, 5: 3.375, 6: 3.25} for number in (1, 2)}
    assert read.step is None
    assert read.device == "cpu: x"
