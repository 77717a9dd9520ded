"""A run's numbers: medians after the warm-up, written whole or not at all."""

import json
import math
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from train.metrics.peak import Peak
from train.metrics.summary import Attempt, RunSummary, summarise
from train.metrics.verdict import ADVICE


def _row(step: int, seconds: float = 0.5, **more: float) -> dict[str, Any]:
    row = {"train/step": step, "train/tokens": step * 1000, "train/loss": 5.0 - step / 100}
    return row | {"perf/step_time_s": seconds, "perf/tokens_per_sec": 1000 / seconds} | more


ATTEMPT = Attempt(0, 4, "NVIDIA H200", Peak(989.0, "data sheet NVIDIA H200"), 4_890_000_000, 813_000_000)


def _summary(rows: list[dict[str, Any]], attempt: Attempt = ATTEMPT, cuda_graph: bool = False) -> RunSummary:
    settings = {"overlap": {"name": "max"}, "strategy": {"cuda_graph": cuda_graph}}
    return summarise(rows, Path("runs/a"), attempt, wall_s=12.5, settings=settings)


def test_medians_leave_the_warm_up_out() -> None:
    rows = [_row(step, 100.0 if step <= 10 else step / 100) for step in range(1, 61)]
    summary = _summary(rows)
    assert (summary.steps, summary.tokens) == (60, 60_000)
    assert (summary.loss_first, summary.loss_last) == (rows[0]["train/loss"], rows[-1]["train/loss"])
    assert summary.step_time_s == pytest.approx(0.355)  # of 0.11 … 0.60
    assert summary.step_time_iqr_s == pytest.approx(0.245)
    assert summary.tokens_per_sec == pytest.approx(1000 / 0.355, rel=1e-3)


@pytest.mark.parametrize(("steps", "kept"), [(1, 1), (2, 1), (4, 3), (5, 4), (49, 40), (50, 40), (200, 190)])
def test_warm_up_is_a_fifth_and_at_most_ten(steps: int, kept: int) -> None:
    rows = [_row(step, 1.0 if step > steps - kept else 100.0) for step in range(1, steps + 1)]
    assert (_summary(rows).step_time_s, _summary(rows).step_time_iqr_s) == (1.0, 0.0)


@pytest.mark.parametrize(("logged", "kept"), [((1, 5, 10), 1), ((1, 2, 3, 4, 5), 2), ((1, 2, 4), 1), ((3, 6, 7), 2)])
def test_the_step_that_is_written_down_is_warm_up(logged: tuple[int, ...], kept: int) -> None:
    """The third; a row holds all steps since the one before it. One row stays, whatever it holds."""
    rows = [_row(20 + step, 1.0 if step in logged[-kept:] else 100.0) for step in logged]
    resumed = replace(ATTEMPT, resumed_after_step=20)
    summary = _summary([*(_row(step, 7.0) for step in range(1, 21)), *rows], resumed, cuda_graph=True)
    assert (summary.step_time_s, summary.step_time_iqr_s) == (1.0, 0.0)


def test_a_rollback_takes_back_the_steps_after_it() -> None:
    rows = [_row(step) for step in range(1, 81)] + [_row(step, 0.25) for step in range(41, 51)]
    summary = _summary(rows)
    assert (summary.steps, summary.tokens) == (50, 50_000)


def test_speed_is_the_last_attempts_and_losses_are_the_jobs() -> None:
    rows = [_row(step, 9.0) for step in range(1, 21)] + [_row(step, 1.0) for step in range(21, 25)]
    summary = _summary(rows, replace(ATTEMPT, resumed_after_step=20))
    assert (summary.step_time_s, summary.loss_first) == (1.0, rows[0]["train/loss"])
    assert _summary(rows[:20], replace(ATTEMPT, resumed_after_step=20)).step_time_s == 9.0


def test_what_was_not_logged_is_none() -> None:
    summary = _summary([_row(1)])
    assert (summary.eval_loss, summary.mfu, summary.mfu_palm, summary.peak_memory_gib) == (None, None, None, None)


def test_evaluation_may_be_a_row_of_its_own() -> None:
    rows = [_row(1), _row(2), {"train/step": 2, "eval/loss": 4.5}, _row(3)]
    summary = _summary(rows)
    assert (summary.eval_loss, summary.steps, summary.loss_last) == (4.5, 3, rows[-1]["train/loss"])


def test_what_bounds_a_run_is_said_of_steps_that_were_divided() -> None:
    divided = {"time/wall_s": 1.0, "time/compute_fwd_s": 0.6, "time/exposed_comm/fsdp_s": 0.4}
    summary = _summary([_row(1), *(_row(step, **divided) for step in range(2, 5))])
    tried = ADVICE["communication (fsdp)"][1].text  # overlap=max is in effect
    assert summary.bound_by == f"communication (fsdp), 40% of a step; try {tried}"
    assert ("bound by", summary.bound_by) in list(summary._lines())
    assert _summary([_row(1)]).bound_by is None


def test_a_rows_weight_is_its_steps() -> None:
    long, short = {"time/steps": 9, "time/compute_fwd_s": 1.0}, {"time/steps": 1, "time/data_wait_s": 6.0}
    walls = {"time/wall_s": 1.0}
    rows = [_row(1), _row(10, **long, **walls), _row(11, **short, **walls)]
    assert (_summary(rows).bound_by or "").startswith("input, 40% of a step")


def test_traced_steps_have_no_speed_and_are_left_out() -> None:
    rows = [_row(step) for step in range(1, 7)]
    for row in rows[2:]:
        del row["perf/step_time_s"], row["perf/tokens_per_sec"]
    assert _summary(rows).step_time_s == 0.5
    assert _summary(rows, replace(ATTEMPT, resumed_after_step=2)).step_time_s == 0.5  # its predecessors'


def test_no_step_is_nothing_to_summarise() -> None:
    with pytest.raises(ValueError, match="no step"):
        _summary([{"train/step": 0, "eval/loss": 5.5}])


def test_the_file_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    summary = _summary([_row(1, **{"perf/mfu": 0.3, "mem/peak_gib": 67.0})])
    summary.write(path)
    assert RunSummary(**json.loads(path.read_text())) == summary

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", die)
    with pytest.raises(KeyboardInterrupt):
        replace(summary, steps=2).write(path)
    assert json.loads(path.read_text())["steps"] == 1


def test_a_run_that_diverged_is_strict_json(tmp_path: Path) -> None:
    replace(_summary([_row(1)]), loss_last=math.nan).write(tmp_path / "summary.json")
    assert json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)["loss_last"] == "NaN"


def test_the_table_says_what_was_measured_and_how_to_look_at_it() -> None:
    stream = StringIO()
    rows = [_row(1, **{"perf/mfu": 0.324, "perf/mfu_palm": 0.351, "eval/loss": 4.5, "mem/peak_gib": 58.25})]
    summary = replace(_summary(rows), run_dir="/scratch/" + "long/" * 30 + "run[1]")
    summary.print(Console(file=stream, width=80, force_terminal=False))
    text = stream.getvalue()
    for expected in ("4.9900 → 4.9900", "4.5000", "2,000", "500.0 ms", "32.4%", "35.1%", "989 TFLOP/s", "58.25 GiB"):
        assert expected in text
    assert "data sheet NVIDIA H200" in text
    assert text.splitlines()[-1] == f"switchyard show {summary.run_dir}"  # whole, on one line
