"""`switchyard schedule compare`: its table, what it reads of a run and says beside a measurement, what it refuses."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import yaml

from conf.compose import compose
from launch.measured_cells import MeasuredRun, with_ranks
from launch.schedule import schedule
from models.config import ConfigError
from models.flops import flops_by_category, flops_per_token
from parallel.pipeline.split import stage_shares
from train.metrics.breakdown import WALL, row_key
from train.run_folder import write_config

SIZES = ("pp=8", "microbatches=32")
FORWARD, BACKWARD, TRAVEL = 0.010, 0.024, 0.004
"""Seconds of a micro-batch of 2 sequences on a rank that has the whole model; all-to-alls each way with ep=2."""


def run_of(
    folder: Path, *words: str, world_size: int, breakdown: dict[str, float], traced_ep_s: dict[int, float] | None = None
) -> Path:
    """A run's folder, as its steps would have left it."""
    composed = compose(["model=tiny", "data=synthetic", "train.global_batch_size=16", *words])
    environment = {"corpus_sha256": "0", "resumed_after_step": 0, "world_size": world_size, "device": "made up"}
    write_config(folder, yaml.safe_load(composed.yaml), environment)
    row = {row_key(bucket): seconds for bucket, seconds in breakdown.items()}
    row |= {row_key(WALL): sum(breakdown.values()), "perf/step_time_s": sum(breakdown.values()), "time/steps": 1}
    rows = [{"train/step": step, **row} for step in range(1, 4)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    for rank, seconds in (traced_ep_s or {}).items():
        summary = folder / "traces" / "step-00000002" / f"rank-{rank}.summary.json"
        summary.parent.mkdir(parents=True, exist_ok=True)
        summary.write_text(json.dumps({"communication_by_kind_s": {"ep": seconds, "dp": 1.0}}))
    return folder


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """Expert parallel over 2 ranks, 4 micro-batches of 2 sequences each; half of its all-to-alls were hidden."""
    breakdown = {
        "compute_fwd": 4 * FORWARD,
        "compute_bwd": 4 * BACKWARD,
        "compute_opt": 0.5,
        "exposed_comm/ep": 4 * TRAVEL,
    }
    words = ("strategy=ep", "train.micro_batch_size=2")
    return run_of(
        tmp_path / "cells", *words, world_size=2, breakdown=breakdown, traced_ep_s={0: 8 * TRAVEL, 1: 9 * TRAVEL}
    )


def test_a_table_for_each_size_and_what_it_takes_for_granted(capsys: pytest.CaptureFixture[str]) -> None:
    assert schedule(["compare", "pp=2,4", "microbatches=4,8", "all_to_all=0"]) == 0
    out = capsys.readouterr().out
    assert out.count("parts of the step's time") == 4
    assert "4 ranks, 8 micro-batches" in out
    assert "not among them: strategy.schedule=dualpipe on strategy.pp=4 ranks takes an even number of micro-" in out
    assert "of a micro-batch: forward=1 input=1 weight=1 all_to_all=0 send=0 attention=0.5; all_to_all each way" in out


def test_the_fastest_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert schedule(["compare", *SIZES]) == 0
    first, second = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")][:2]
    assert [cell.strip() for cell in first.strip("│").split("│")] == [
        *("dualpipe, paired", "112.5", "85.3%", "8.7%", "6.0%", "69.5%", "9", "2×")
    ]
    assert "dualpipev, paired" in second


def test_the_picture_has_a_bar_for_each(tmp_path: Path) -> None:
    assert schedule(["compare", *SIZES, "--svg", str(tmp_path / "a.svg")]) == 0
    titles = [element.text or "" for element in ElementTree.parse(tmp_path / "a.svg").getroot().iter()]
    assert "zbv: exposed_comm/ep 3.2e+04 ms" in titles
    assert "compute 72.0%" in titles
    assert "8 ranks, 32 micro-batches: forward=1 input=1 weight=1 all_to_all=0.5 send=0 attention=0.5" in titles
    assert schedule(["compare", "pp=2,4", "microbatches=8", "--svg", str(tmp_path / "a.svg")]) == 0
    titles = [element.text or "" for element in ElementTree.parse(tmp_path / "a.svg").getroot().iter()]
    assert "zbv, 4 ranks, 8 micro-batches" in titles


def test_cells_are_a_runs(cells: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = MeasuredRun.read(cells)
    times, model = run.cells, run.job.model
    assert times.forward == pytest.approx(FORWARD)
    assert times.input == times.weight == pytest.approx(BACKWARD / 2)
    assert times.all_to_all == pytest.approx(TRAVEL)  # the fastest rank's trace, not what was exposed
    experts = flops_by_category(model, 128)["expert_gemm"] * 3 / 2  # beside two routed experts, a shared one
    assert times.attention == pytest.approx(1 - experts / flops_per_token(model, 128))
    assert with_ranks(run, 8).all_to_all == pytest.approx(TRAVEL * (7 / 8) / (1 / 2))
    assert with_ranks(run, 1).all_to_all == 0
    assert schedule(["compare", *SIZES, f"cells={cells}", "ep=8", "send=0.001"]) == 0
    out = capsys.readouterr().out
    assert "forward=0.01 input=0.012 weight=0.012 all_to_all=0.007 send=0.001" in out
    assert f"times are of {cells}: accumulation, pp=1 ep=2, 4 micro-batches, 2 × made up; not send, as typed" in out
    assert "all-to-alls are a traced step's, on the fastest rank; backward is half" in out
    assert "ep=8: (ep-1)/ep of all rows travel, as many bytes a second as with ep=2" in out


def test_without_a_trace_all_to_alls_are_what_was_exposed(tmp_path: Path) -> None:
    breakdown = {"compute_fwd": 1.0, "compute_bwd": 2.0, "exposed_comm/ep": 0.8}
    words = ("strategy=ep", "train.micro_batch_size=2")
    run = MeasuredRun.read(run_of(tmp_path / "a", *words, world_size=2, breakdown=breakdown))
    assert run.cells.all_to_all == pytest.approx(0.8 / 4 / 2)
    assert run.traced_ep_s is None


def test_paper_beside_what_was_measured(cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pipeline of two ranks in micro-batches of 1: as the formula has it, by the rank that has more of the FLOPs."""
    n, factor = 16, 1 / 4
    cell = (FORWARD + BACKWARD) * factor
    busy = {"compute_fwd": n * FORWARD * factor, "compute_bwd": n * BACKWARD * factor, "bubble": cell}
    words = ("strategy=pp", "train.micro_batch_size=1")
    exact = run_of(tmp_path / "exact", *words, world_size=2, breakdown=busy | {"compute_opt": 1.0, "data_wait": 3.0})
    slower = {name: seconds * 1.25 for name, seconds in busy.items()} | {"sync_wait": 0.1}
    late = run_of(tmp_path / "late", *words, world_size=2, breakdown=slower)
    assert schedule(["compare", *SIZES, f"cells={cells}", f"measured={exact},{late},{cells}"]) == 0
    lines = capsys.readouterr().out.splitlines()[-3:]
    first, last = stage_shares(MeasuredRun.read(exact).job.model, 2, 128)
    assert first > 1.01 > last, "else this is another formula"
    # The first stage is idle twice: for the last one's first micro-batch, less its own second forward, and for the last
    # one's last, less its own backward.
    forward = FORWARD / (FORWARD + BACKWARD)
    idle = max(0, last - first * forward) + max(0, last - first * (1 - forward))
    ms = (n * first + idle) * cell * 1e3
    off = f"{ms * 1e-3 / ((n + 1) * cell) - 1:+.1%}"
    what = "1f1b, pp=2 ep=1, 16 micro-batches"
    took = (n + 1) * cell * 1e3
    assert lines[0] == f"{exact}: {what}: on paper {ms:.1f} ms, measured {took:.1f} ms ({off})"
    slower_by = f"{ms / took / 1.25 - 1:+.1%}"
    assert lines[1].endswith(
        f"on paper {ms:.1f} ms, measured {1.25 * took:.1f} ms ({slower_by}, and 100.0 ms for late ranks)"
    )
    # What it hid of its all-to-alls, plain accumulation would not have.
    alone, hid = 4 * (FORWARD + BACKWARD + 2 * TRAVEL), 4 * (FORWARD + BACKWARD + TRAVEL)
    assert lines[2].endswith(f"on paper {alone * 1e3:.1f} ms, measured {hid * 1e3:.1f} ms ({alone / hid - 1:+.1%})")


def test_paper_is_within_5_percent_of_two_gpus(tmp_path: Path) -> None:
    """What `switchyard bench` measured on 2 × H100 on 2026-11-25 (docs/LOG.md, strategy=pp): the bubble follows."""
    words = ("strategy=pp", "model=moe_5b", "model.n_layers=5", "train.global_batch_size=8", "precision=bf16")
    breakdown = {"compute_fwd": 0.0773, "compute_bwd": 0.1266, "compute_opt": 0.0208, "bubble": 0.0540, "log": 0.0016}
    run = MeasuredRun.read(run_of(tmp_path / "pp", *words, world_size=2, breakdown=breakdown))
    assert run.n_micro_batches == 4
    assert run.simulated(run).makespan == pytest.approx(run.measured_s, rel=0.05)


def test_a_run_that_pairs_is_paired_on_paper(cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Plain accumulation: a forward alone, three pairs that hide all, a backward alone."""
    took = 4 * (FORWARD + BACKWARD) + 2 * TRAVEL
    busy = {"compute_fwd": 4 * FORWARD, "compute_bwd": 4 * BACKWARD, "exposed_comm/ep": 2 * TRAVEL}
    words = ("strategy=ep", "train.micro_batch_size=2", "overlap.forward_backward=true")
    pairs = run_of(tmp_path / "pairs", *words, world_size=2, breakdown=busy)
    assert schedule(["compare", "pp=2", "microbatches=4", f"cells={cells}", f"measured={pairs}"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    what = "accumulation, paired, pp=1 ep=2, 4 micro-batches"
    assert last == f"{pairs}: {what}: on paper {took * 1e3:.1f} ms, measured {took * 1e3:.1f} ms (+0.0%)"


def test_a_run_of_balanced_routing_is_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("strategy=single", "model.moe.routing=balanced", "model.moe.balance=none")
    folder = run_of(tmp_path / "a", *words, world_size=1, breakdown={"compute_fwd": 1.0, "compute_bwd": 2.0})
    assert schedule(["compare", *SIZES, f"cells={folder}"]) == 0
    assert "1 micro-batch, balanced routing, 1 × made up" in capsys.readouterr().out


def refusal(*words: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        schedule(["compare", *map(str, words)])
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "schedule compare needs pp=…: switchyard schedule compare pp=8 microbatches=32 cells=runs/NAME"),
        (("pp=8",), "schedule compare needs microbatches=…: "),
        ((*SIZES, "zbv"), "zbv: schedule compare takes pp, microbatches, "),
        ((*SIZES, "pair=3"), "pair=3: schedule compare takes pp, microbatches, "),
        ((*SIZES, "pp=8,x"), "pp=x: set it to a whole number, at least 1"),
        ((*SIZES, "forward=0"), "forward=0: set it to a time in any unit, above 0"),
        ((*SIZES, "all_to_all=-1"), "all_to_all=-1: set it to a time in any unit, 0 or more"),
        ((*SIZES, "attention=1.5"), "attention=1.5: it is a part of compute; set it to 0 … 1"),
        ((*SIZES, "ep=8"), "ep=8 scales what was measured: set cells=RUN, or leave it out for all_to_all=TIME"),
        ((*SIZES, "measured=a"), "a has no config.yaml: name the folder of a run that has logged steps"),
        ((*SIZES, "cells=/no/such"), "/no/such has no config.yaml: name the folder of a run that has logged steps"),
        ((*SIZES, "--svg"), "--svg lacks its file: write --svg FILE"),
        ((*SIZES, "--svg", "/no/such/a.svg"), "--svg /no/such/a.svg: No such file or"),
    ],
)
def test_a_refusal_is_one_line(words: tuple[str, ...], said: str) -> None:
    assert refusal(*words).startswith(said)


def test_runs_that_do_not_fit_are_refused(cells: Path, tmp_path: Path) -> None:
    two = {"compute_fwd": 1.0, "compute_bwd": 2.0}
    other = run_of(tmp_path / "other", "model.dim=32", "strategy=ep", world_size=2, breakdown=two)
    said = refusal(*SIZES, f"cells={cells}", f"measured={other}")
    assert said.startswith(f"{other} has another model or device than {cells}")
    alone = run_of(tmp_path / "alone", "strategy=single", world_size=1, breakdown=two)
    said = refusal(*SIZES, f"cells={alone}", "ep=8")
    assert said.startswith(f"{alone} had strategy.ep=1, and ep=8 takes all-to-alls")
    assert refusal(*SIZES, f"measured={cells}") == "measured=… is set beside what cells=RUN says: set that too"
    undivided = run_of(tmp_path / "undivided", "strategy=single", world_size=1, breakdown={})
    assert refusal(*SIZES, f"cells={undivided}").startswith(f"{undivided} has no step that was divided into phases: ")
