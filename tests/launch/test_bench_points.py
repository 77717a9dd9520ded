"""Which points words stand for, what they are called, and what is refused before anything runs."""

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from harness.layout_run import MODEL, Layout, lay_out, this_world
from harness.strategies import strategy
from harness.worker_pool import WorkerPool

from conf.compose import compose
from conf.options import Options
from conf.schema import JobConfig, validate
from conf.sweep import choices
from launch.bars_picture import AXIS
from launch.bench.ceilings import Ceilings, fastest_seconds
from launch.bench.order import DEFAULTS, Order
from launch.bench.peer import peer_points
from launch.bench.picture import Bar, draw
from launch.bench.plan import rounds_of
from launch.bench.roofline import caveats, optimizer_parameters, roofline
from launch.bench.traced import in_second_half, trace_words
from launch.cli import main
from launch.jobs.points import Point, check_names, points_of
from models.config import ConfigError
from models.flops import count_parameters, flops_per_token
from parallel.comm import Communicator
from parallel.config import OverlapConfig
from train.metrics.verdict import TracedStep
from train.trace.plan import Role, TracePlan

ROOT = Path(__file__).resolve().parents[2]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("word", "stands_for"),
    [
        ("strategy=fsdp,ep", ["strategy=fsdp", "strategy=ep"]),
        ("strategy=fsdp", ["strategy=fsdp"]),
        ("strategy=fsdp,fsdp", ["strategy=fsdp"]),
        ("train.micro_batch_size=range(1,4)", [f"train.micro_batch_size={n}" for n in (1, 2, 3)]),
        ("overlap.grad_reduce=true,false", ["overlap.grad_reduce=true", "overlap.grad_reduce=false"]),
        ("data.path='a,b'", ["data.path='a,b'"]),
        ("data.path='a,b',c", ["data.path='a,b'", "data.path=c"]),
        ("strategy=glob(pp_f*)", ["strategy=pp_fsdp", "strategy=pp_fsdp_ep", "strategy=pp_fsdp_tp_ep"]),
        ("strategy=glob(pp_f*,exclude=*_ep)", ["strategy=pp_fsdp"]),
        ("optim.lr=sort(3e-4,1e-4)", ["optim.lr=0.0001", "optim.lr=0.0003"]),
        ("measure.trace_ranks=[0,1]", ["measure.trace_ranks=[0,1]"]),
        ("data.path=/é ü", ["data.path=/é ü"]),  # Hydra's grammar has none of it: its own word, judged later
    ],
)
def test_commas_are_read_as_hydra_reads_them(word: str, stands_for: list[str]) -> None:
    assert choices(word, Options.find()) == stands_for


def test_an_interval_names_no_values() -> None:
    with pytest.raises(ConfigError, match="name the values"):
        choices("optim.lr=interval(0,1)", Options.find())


def test_a_glob_that_fits_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="fits no option"):
        choices("strategy=glob(nothing*)", Options.find())
    with pytest.raises(ConfigError, match="fits no option"):
        choices("train.steps=glob(*)", Options.find())


def names(words: list[str], configs: dict[str, list[str]] | None = None) -> list[str]:
    return [point.name for point in points_of(words, configs, Options.find())]


def test_points_are_the_product_and_called_by_what_distinguishes_them() -> None:
    words = ["model=tiny", "strategy=fsdp,ep", "train.micro_batch_size=2,4"]
    assert names(words) == [f"{s}-micro_batch_size={n}" for s in ("fsdp", "ep") for n in (2, 4)]
    assert names(["strategy=fsdp", "model=tiny"]) == ["fsdp"]
    assert names(["overlap=none,max"], {"a": [], "b": ["strategy=ep"]}) == ["a-none", "a-max", "b-none", "b-max"]


@pytest.mark.parametrize(
    ("word", "value"), [("strategy=fsdp,fsdp", "strategy=fsdp"), ("train.seed=range(1,2)", "train.seed=1")]
)
def test_a_list_of_one_value_is_that_value(word: str, value: str) -> None:
    (point,) = points_of([word], None, Options.find())
    assert point.words[0] == value


def test_a_points_words_are_a_jobs_and_the_last_one_counts() -> None:
    words = ["data=stdlib", "train.steps=3", "train.steps=4"]
    (point,) = points_of(words, {"a": ["train.seed=2"]}, Options.find(), DEFAULTS)
    rest = tuple(f"{key}={value}" for key, value in DEFAULTS.items() if key not in ("data", "train.steps"))
    assert point.words == ("data=stdlib", "train.steps=4", "train.seed=2", *rest)


def peers(*words: str) -> list[Point]:
    points = points_of(words, None, Options.find(), DEFAULTS)
    return peer_points(points, {point.name: compose(point.words).config for point in points})


def test_a_peer_runs_once_for_all_that_it_cannot_tell_apart() -> None:
    (peer,) = peers("model=moe_5b", "strategy=fsdp,ep", "overlap=default")
    assert peer.name == "transformers"
    assert {"model=moe_5b", "strategy=fsdp", "data=synthetic", "train.steps=40"} <= set(peer.words)
    assert not any(word.startswith("overlap") for word in peer.words)
    ours = {"optim.one_pass": "true,false", "model.loss_backend": "auto,torch", "model.loss_chunk_size": "9,99"}
    (peer,) = peers("strategy=zero1", "model.row_backend=auto,torch", *map("=".join, ours.items()))
    assert not {word.split("=")[0] for word in peer.words} & {*ours, "model.row_backend"}
    (peer,) = peers("strategy=zero1", "optim.one_pass=true", "optim.halves=false,true")
    assert not any(word.startswith("optim") for word in peer.words)
    (peer,) = peers("strategy=zero1", "precision=bf16", "precision.matmul=default,fp8")
    assert "precision=bf16" in peer.words
    assert not any(word.startswith("precision.matmul") for word in peer.words)
    assert [peer.name for peer in peers("strategy=fsdp,ep", "train.global_batch_size=8,16")] == [
        "transformers-fsdp-global_batch_size=8",
        "transformers-fsdp-global_batch_size=16",
    ]


def test_a_peer_holds_weights_for_backward_where_ours_does() -> None:
    hides, default = peers("strategy=fsdp,ddp", "overlap=max")
    assert hides.words[-1] == "overlap.reshard_after_forward=false"
    assert not any(word.startswith("overlap") for word in default.words)
    (undivided,) = peers("strategy=ddp", "measure=off")
    assert undivided.words[-1] == "measure=off"


def test_a_trace_is_of_one_step_beside_the_rounds(tmp_path: Path) -> None:
    words = [f"to={tmp_path}", "nproc=2", "rounds=2", "model=tiny", "train.steps=7", "trace=true", "strategy=ddp,fsdp"]
    first, last, traced = rounds_of(Order.parse(words))
    names = [job.name for job in (*first, *last, *traced)]
    assert names == ["ddp-r1", "fsdp-r1", "fsdp-r2", "ddp-r2", "ddp-trace", "fsdp-trace"]
    assert all(job.words == job.point.words for job in (*first, *last))
    more_words = ("measure.trace_every=4", "measure.trace_limit=1")
    assert all(job.words == (*job.point.words, *more_words) for job in traced)
    more = rounds_of(Order.parse([*words, "rounds=3"]))
    assert [job.words for job in more[-1]] == [job.words for job in traced]
    assert more[:2] == [first, last]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["strategy=ddp"], "where do results go? write to=FOLDER"),
        (["to=", "strategy=ddp"], "where do results go? write to=FOLDER"),
        (["to=b", "rounds=0"], "rounds=0: set it to the number of rounds, at least 1"),
        (["to=b", "trace=yes"], "trace=yes: set it to true or false"),
        (["to=b", "trace=true", "train.steps=2"], "trace=true with train.steps=2: 2 steps come before a traced one"),
        (["to=b", "trace=true", "measure=off"], "trace=true shows what the clock times: set measure.clock=true"),
        (["to=b", "trace=true", "measure.clock=true,false"], "clock=false: trace=true shows what the clock times: "),
        (["to=b", "limits=nowhere.yaml"], "limits=nowhere.yaml: No such file or directory; name a YAML file"),
        (["to=b", "peer=megatron"], "peer=megatron: set it to transformers, or leave it out"),
        (["to=b", "run.name=x"], "run.name=x: bench names the run folders, in to=FOLDER; leave it out"),
        (["to=b", "strategy=dpp,fsdp"], "dpp: strategy=dpp: no such strategy; did you mean pp?"),
        (["to=b", "strategy=dpp"], "strategy=dpp: no such strategy; did you mean pp?"),
        (["to=b", "nproc=2", "strategy=ddp,single"], "single: strategy=single is 1 rank, and 2 were started: "),
        (["to=b", "optim.lr=interval(0,1)"], "optim.lr=interval(0,1): name the values, with commas between them"),
        (["to=b", "configs=/no/such.yaml"], "configs=/no/such.yaml: No such file or directory; name a YAML file"),
        (["to=b", "train.device=cuda"], "train.device=cuda on a machine without a GPU: "),
        (
            ["to=b", "peer=transformers", "model=tiny_mla", "data=stdlib"],
            "transformers: peer=transformers learns random",
        ),
        (
            ["to=b", "peer=transformers", "model=tiny_mla", "model.init_from=nowhere"],
            "transformers: model.init_from=nowhere: no checkpoint there",
        ),
        (
            ["to=b", "nproc=2", "strategy=ep", "strategy.dispatcher=symmetric_memory"],
            "strategy.dispatcher=symmetric_memory: GPUs read each other's memory, a cpu does not; set it to all_gather",
        ),
        (
            ["to=b", "peer=transformers", "model=tiny", "model.moe.score=softmax"],
            "transformers: model.attention.qk_norm=false: grouped-query attention with scores by softmax",
        ),
    ],
)
def test_a_refusal_is_one_line_before_anything_runs(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert main(["bench", *words]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"switchyard: {said}")
    assert err.count("\n") == 1
    assert out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[a, b]", "write a mapping of names to lists of words"),
        ("{}", "write a mapping of names to lists of words"),
        ("a: strategy=ddp", "write a mapping of names to lists of words"),
        ("a: [1]", "write a mapping of names to lists of words"),
        ("a: [", "is not YAML: "),
        ("transformers: [strategy=ddp]", "two points are called transformers: "),
        (
            "a/b: [strategy=ddp]",
            "a point called 'a/b', which names a folder of letters, digits and ._+=-, 100 at most: ",
        ),
        ("{a: [strategy=ddp], 'a-none': ['overlap=default']}\n", ""),
    ],
)
def test_configs_in_a_file(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "points.yaml"
    path.write_text(text)
    words = [f"to={tmp_path / 'b'}", "nproc=2", "model=tiny", "peer=transformers", f"configs={path}"]
    if not said:
        assert [point.name for point in Order.parse(words).points] == ["a", "a-none"]
        return
    with pytest.raises(ConfigError) as refusal:
        Order.parse(words)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_two_points_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two points are called a-max"):
        check_names(points_of(["train.seed=1"], {"a-max": [], "a": ["overlap=none,max"]}, Options.find()), "rename")


def test_cfg_job_prints_every_point_and_runs_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"to={tmp_path / 'b'}", "model=tiny", "strategy=ddp,fsdp", "train.steps=7", "--cfg", "job"]
    assert main(["bench", *words]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("#")] == ["# ddp", "# fsdp"]
    assert out.count("  steps: 7\n") == 2
    assert not (tmp_path / "b").exists()


CEILINGS = Ceilings("a GPU", "bfloat16", 700.0, 600.0, 590.0, 400.0, 4000.0)


BIG = ["model=moe_5b", "data=synthetic", "train.global_batch_size=8"]
TRACE = TracedStep(0.3, 0.01, 0.005, 7, {"dense_gemm": 0.05, "optimizer": 0.02})


def test_a_roofline_sums_to_a_steps_flops() -> None:
    job = compose([*BIG, "precision=bf16", "strategy=fsdp"]).config
    lines = {line.category: line for line in roofline(job, 2, CEILINGS, TRACE)}
    products = sum(line.work for line in lines.values() if line.unit == "TFLOP")
    assert products == pytest.approx(flops_per_token(job.model, 4096) * 8 * 4096 / 2 / 1e12)
    assert lines["dense_gemm"].rate == pytest.approx(lines["dense_gemm"].work / 0.05)
    assert lines["dense_gemm"].of_ceiling == pytest.approx(lines["dense_gemm"].work / 0.05 / 700)
    assert lines["attention"].rate is lines["attention"].of_ceiling is None
    half = count_parameters(job.model).total / 2
    assert lines["optimizer"].work == pytest.approx(half * 28 / 1e9)
    assert caveats(job, 2, CEILINGS) == []


def test_a_roofline_has_no_rate_where_stages_differ() -> None:
    """Rank 0 has its own stage's kernels, and the work is all stages' mean."""
    job = compose([*BIG, "precision=bf16", "strategy=pp"]).config
    lines = roofline(job, 2, CEILINGS, TRACE)
    assert [line.rate for line in lines] == [None] * 4
    assert all(line.work and line.ceiling for line in lines)
    assert [note.split(":")[0] for note in caveats(job, 2, CEILINGS)] == ["no rates"]


def test_a_ceiling_is_of_the_jobs_dtype() -> None:
    job = compose([*BIG, "precision=fp32", "strategy=fsdp"]).config
    lines = {line.category: line for line in roofline(job, 2, CEILINGS, TRACE)}
    assert lines["dense_gemm"].rate
    assert lines["dense_gemm"].ceiling is lines["dense_gemm"].of_ceiling is None
    assert lines["optimizer"].of_ceiling
    assert caveats(job, 2, CEILINGS) == ["no ceilings of products: they were measured in bfloat16, not float32"]
    job = compose([*BIG, "precision=fp8", "strategy=fsdp"]).config
    assert caveats(job, 2, CEILINGS) == [
        "no ceilings of products: they were measured in bfloat16, not bfloat16 and fp8"
    ]
    assert caveats(job, 2, None) == []


LAYOUTS = {
    "ddp": (2, strategy("ddp")),
    "zero1": (2, strategy("zero1")),
    "hsdp": (4, strategy("hsdp")),
    "ep": (2, strategy("ep")),
    "fsdp_ep": (4, strategy("fsdp_ep")),
    "pp": (2, strategy("pp")),
    "pp_dualpipe": (2, strategy("pp", "schedule=dualpipe")),
    "pp_fsdp": (4, strategy("pp_fsdp")),
    "pp_fsdp_dualpipe": (4, strategy("pp_fsdp", "schedule=dualpipe")),
    "pp_zero1_dualpipe": (4, strategy("zero1", "pp=2", "schedule=dualpipe")),
}


def numel_owned(layout: Layout) -> int:
    """By the calling rank."""
    parallel, _ = lay_out(layout, this_world(), Communicator())
    return sum(part.master.numel() for part in parallel.owned.values())


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_optimizer_moves_what_a_rank_owns(name: str, pool: WorkerPool) -> None:
    ranks, chosen = LAYOUTS[name]
    held = OverlapConfig(reshard_after_forward="dualpipe" not in name)  # whose weight gradients need them whole
    layout = Layout(chosen, held, model=replace(MODEL, n_layers=4), micro_batch_size=1)
    owned = pool.run(ranks, numel_owned, layout)
    job = JobConfig(model=layout.model, strategy=chosen)
    assert optimizer_parameters(job, ranks) == pytest.approx(sum(owned) / ranks, rel=1e-9)


@pytest.mark.parametrize("steps", [3, 4, 5, 6, 7, 40])
def test_its_words_trace_one_step_of_every_job(steps: int, tmp_path: Path) -> None:
    job = compose(("model=tiny", f"train.steps={steps}")).config
    traced = compose(("model=tiny", f"train.steps={steps}", *trace_words(in_second_half(job)))).config
    plan = TracePlan(traced.measure, range(1, steps + 1), tmp_path)
    assert len([step for step in range(1, steps + 1) if plan.role(step) is Role.traced]) == 1


def test_calls_are_timed_in_batches_between_two_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by 1 a call and 10 a drain."""
    now = [0.0]
    drained = []

    def pass_(seconds: float) -> None:
        now[0] += seconds

    def drain(_: torch.device) -> None:
        pass_(10.0)
        drained.append(now[0])

    monkeypatch.setattr("launch.bench.ceilings._drain", drain)
    monkeypatch.setattr("launch.bench.ceilings.time.perf_counter", lambda: now[0])
    assert fastest_seconds(lambda: pass_(1.0), torch.device("cpu")) == pytest.approx(2.0)
    assert len(drained) == 22


def test_a_pictures_parts_are_as_long_as_their_seconds() -> None:
    divided = {"compute_fwd": 0.3, "exposed_comm/ep": 0.2, "other": -0.01, "wall": 0.5}
    bars = [Bar("a<b>&\"c'", "1 tokens/s", divided, 0.5), Bar("peer", "2 tokens/s", {}, 0.25)]
    root = ElementTree.fromstring(draw(bars, "2 < 3"))
    widths = {
        title.text: float(rect.get("width", ""))
        for rect in root.iter(f"{SVG}rect")
        if (title := rect.find(f"{SVG}title")) is not None
    }
    assert widths == {
        "a<b>&\"c': compute_fwd 300 ms": pytest.approx(AXIS * 0.6, abs=0.01),
        "a<b>&\"c': exposed_comm/ep 200 ms": pytest.approx(AXIS * 0.4, abs=0.01),
        "peer: step, not divided 250 ms": pytest.approx(AXIS * 0.5, abs=0.01),
    }
    said = [element.text for element in root.iter(f"{SVG}text")]
    assert said[:7] == ["2 < 3", "0", "0.1", "0.2", "0.3", "0.4", "0.5"]
    assert said[-3:] == ["compute_fwd", "exposed_comm/ep", "step, not divided"]
    assert replace(bars[1], step_s=1e-9).length_s == 1e-9


def test_lists_of_words_are_json_too(tmp_path: Path) -> None:
    path = tmp_path / "points.json"
    path.write_text(json.dumps({"a": ["strategy=ddp"]}))
    assert [p.name for p in Order.parse([f"to={tmp_path / 'b'}", f"configs={path}", "model=tiny"]).points] == ["a"]


def test_every_layout_of_the_benchmark_can_run_on_two_ranks() -> None:
    layouts = yaml.safe_load((ROOT / "benchmarks" / "layouts.yaml").read_text())
    assert len(layouts) == 19
    more = ("model=moe_5b", "precision=bf16", "optim=adamw_large", "train.global_batch_size=8", "data=synthetic")
    for words in layouts.values():
        validate(compose((*more, *words)).config, 2)


@pytest.mark.parametrize(("ranks", "more"), [(1, ()), (2, ("strategy.ep=-1",))])
def test_every_rung_of_the_ladder_can_run_and_changes_one_thing(ranks: int, more: tuple[str, ...]) -> None:
    ladder = yaml.safe_load((ROOT / "benchmarks" / "ladder.yaml").read_text())
    typed = ("model=moe_5b", "precision=bf16", "optim=adamw_large", "train.global_batch_size=8", "data=synthetic")
    for words in ladder.values():
        validate(compose((*typed, *words, *more)).config, ranks)
    first, *rungs = (set(words) for words in ladder.values())
    below = [first]
    for words in rungs:
        # What it takes away and what it adds is of one key, beside some rung below.
        keys = [{word.split("=")[0] for word in words ^ other} for other in below]
        assert any(len(key) == 1 for key in keys), words
        below.append(words)


def test_the_points_of_the_tables_can_run() -> None:
    typed = ("model=moe_5b", "precision=bf16", "optim=adamw_large", "train.global_batch_size=8", "data=synthetic")
    for name, ranks in (("one_gpu", 1), ("two_gpus", 2), ("graph", 1)):
        for words in yaml.safe_load((ROOT / "benchmarks" / f"{name}.yaml").read_text()).values():
            validate(compose((*typed, *words)).config, ranks)
