"""What was made late shows up in its own bucket of its own step, as long as it was, and nowhere else.

Real processes on gloo; the truth is the injector's own stamps (harness/late.py). Within 1 % of the wall or 0.2 s.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness import late as late_job
from harness.engine_run import another_pool
from harness.job_in_pool import job_in_pool
from harness.run_record import RunRecord

from train.metrics.breakdown import APART, BUCKETS

LATE = 1.2  # seconds
PERF = "perf/step_time_s"
COMMON = ("model=tiny", "train.device=cpu", "train.log_every=1", "train.steps=9", "train.eval_sequences=0")
QUIET = ("checkpoint=off", "logging=off", "overlap.data=0")


@dataclass(frozen=True)
class Late:
    """A job's rows, and what was late in it."""

    rows: dict[int, dict[str, Any]]
    stamps: list[list[dict[str, Any]]]
    """By rank."""
    said: str
    """On standard output."""

    def seconds(self, step: int, rank: int) -> float:
        """As this rank's own stamps say."""
        (event,) = (event for event in self.stamps[rank] if event["step"] == step and event["what"] != "waited")
        seconds: float = event["seconds"]
        return seconds

    def waited_for_others(self, step: int, rank: int) -> float:
        """What this rank's waits for collectives of all ranks were longer than the least of each, by the stamps."""
        waits = [[e["seconds"] for e in events if (e["step"], e["what"]) == (step, "waited")] for events in self.stamps]
        return sum(of_one[rank] - min(of_one) for of_one in zip(*waits, strict=True))

    def check(self, step: int, bucket: str, seconds: float, statistic: str = "time") -> None:
        """`bucket` of `step` is `seconds` longer than usual."""
        usual = min(self.rows[other].get(f"{statistic}/{bucket}_s", 0.0) for other in (2, 9))
        got = self.rows[step].get(f"{statistic}/{bucket}_s", 0.0) - usual
        allowed = max(0.2, 0.01 * self.rows[step]["time/wall_s"])
        assert abs(got - seconds) <= allowed, (step, bucket, got, seconds)

    def check_others(self, step: int, but: set[str]) -> None:
        """Nothing else was longer than usual on any rank."""
        for bucket in (*BUCKETS, *APART):
            if bucket not in but:
                self.check(step, bucket, 0.0, "time_max")


def run_late(tmp_path: Path, events: str, *words: str, ranks: int = 2) -> Late:
    record = RunRecord(tmp_path / "run")
    stamps = tmp_path / "stamps"
    all_words = (*COMMON, *QUIET, *words, f"run.dir={record.folder}")
    with another_pool() as pool:  # what is late there stays so
        done = job_in_pool(pool, ranks, str(stamps), events, *all_words, program=late_job.main)
    assert done.returncode == 0, done.stderr
    rows = {row["train/step"]: row for row in record.rows if "train/loss" in row}
    # Between two readings of a clock a rank may lose its core for milliseconds, a hundredth of a short step: so of all.
    other_s, wall_s = (sum(abs(row[f"time/{name}_s"]) for row in rows.values()) for name in ("other", "wall"))
    assert other_s <= 0.01 * wall_s
    # The walls come to those of the loop's own stopwatch on rank 0, which knows of no phases. (Ranks begin the first
    # step at different moments, and end each a little apart.)
    timed = [row for step, row in rows.items() if step > 1 and PERF in row]
    walls, stopwatch = [row["time/wall_s"] - row.get("time/profile_s", 0.0) for row in timed], [r[PERF] for r in timed]
    assert sum(walls) == pytest.approx(sum(stopwatch), rel=0.01)
    return Late(rows, [json.loads(Path(f"{stamps}-{rank}.json").read_text()) for rank in range(ranks)], done.stdout)


def test_a_slow_rank_a_slow_loader_and_a_slow_reduction(tmp_path: Path) -> None:
    events = f"4:forward:1:{LATE},6:loader:all:{LATE},8:dp:all:{LATE}"
    late = run_late(tmp_path, events, "strategy=zero1")

    late.check(4, "compute_fwd", late.seconds(4, 1), "time_max")
    waited = late.waited_for_others(4, 0)
    assert waited > LATE / 2  # as long as rank 1 was late, less what a busy machine made rank 0 late
    late.check(4, "sync_wait", waited, "time_max")
    late.check_others(4, {"compute_fwd", "sync_wait"})
    assert late.rows[4]["time_max_rank/sync_wait"] == 0
    assert late.rows[4]["time_max_rank/compute_fwd"] == 1
    assert late.rows[4]["time/slow_rank"] == 1
    assert late.rows[4]["time/slow_rank_share"] > 0.9
    assert re.search(r"step 4: others wait for rank 1, 0\.\d+ s of a step of \d\.\d+ s", late.said)

    late.check(6, "data_wait", (late.seconds(6, 0) + late.seconds(6, 1)) / 2)
    late.check_others(6, {"data_wait"})

    late.check(8, "exposed_comm/dp", (late.seconds(8, 0) + late.seconds(8, 1)) / 2)
    late.check_others(8, {"exposed_comm/dp"})


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("accelerate_ddp", marks=pytest.mark.soak)])
def test_slow_compute_is_in_its_phase(strategy: str, tmp_path: Path) -> None:
    events = f"4:forward:all:{LATE},6:backward:all:{LATE},8:optimizer:all:{LATE}"
    late = run_late(tmp_path, events, f"strategy={strategy}")
    for step, bucket in ((4, "compute_fwd"), (6, "compute_bwd"), (8, "compute_opt")):
        late.check(step, bucket, (late.seconds(step, 0) + late.seconds(step, 1)) / 2)
        late.check_others(step, {bucket})


@pytest.mark.parametrize(
    ("strategy", "kind"),
    [
        ("fsdp", "fsdp"),
        ("ep", "ep"),
        pytest.param("ddp", "control", marks=pytest.mark.soak),
        pytest.param("tp", "tp", marks=pytest.mark.soak),
    ],
)
def test_a_slow_collective_is_exposed_by_its_kind(strategy: str, kind: str, tmp_path: Path) -> None:
    late = run_late(tmp_path, f"5:{kind}:all:{LATE}", f"strategy={strategy}")
    late.check(5, f"exposed_comm/{kind}", (late.seconds(5, 0) + late.seconds(5, 1)) / 2)
    late.check_others(5, {f"exposed_comm/{kind}"})


def test_an_idle_stage_is_a_bubble(tmp_path: Path) -> None:
    late = run_late(tmp_path, f"5:forward:0:{LATE}", "strategy=pp")
    late.check(5, "compute_fwd", late.seconds(5, 0), "time_max")
    late.check(5, "bubble", late.seconds(5, 0), "time_max")
    late.check_others(5, {"compute_fwd", "bubble"})
    assert late.rows[5]["time_max_rank/bubble"] == 1


KINDS = {
    "single": (1, ""),
    "ddp": (2, "dp"),
    "zero1": (2, "dp"),
    "fsdp": (2, "fsdp"),
    "hsdp": (4, "fsdp"),
    "ep": (2, "dp ep"),
    "fsdp_ep": (4, "fsdp ep"),
    "hsdp_ep": (4, "fsdp ep"),
    "tp": (2, "tp dp"),
    "tp_ep": (4, "tp ep dp"),
    "fsdp_tp": (4, "fsdp tp dp"),
    "pp": (2, "pp"),
    "pp_ep": (4, "pp ep dp"),
    "pp_tp": (4, "pp tp dp"),
    "pp_fsdp": (4, "pp fsdp"),
    "pp_fsdp_ep": (4, "pp fsdp ep"),
    "pp_fsdp_tp_ep": (8, "pp fsdp tp ep dp"),
    "accelerate_ddp": (2, ""),
    "deepspeed_zero1": (2, ""),
    "deepspeed_zero3": (2, ""),
}
"""Ranks, and what each strategy waits for; engines' own waits cannot be seen."""


@pytest.mark.soak
@pytest.mark.parametrize("strategy", KINDS)
def test_every_strategy_waits_for_its_own_kinds_and_fills_its_wall(strategy: str, tmp_path: Path) -> None:
    ranks, kinds = KINDS[strategy]
    late = run_late(tmp_path, f"5:forward:0:{LATE}", f"strategy={strategy}", ranks=ranks)
    for row in late.rows.values():
        waited = {key.split("/")[2].removesuffix("_s") for key in row if key.startswith("time/exposed_comm/")}
        # A pipeline's sends may all be done when they are waited for, and its receives are bubbles.
        assert waited - {"control", "pp"} == set(kinds.split()) - {"pp"}
        assert ("time/bubble_s" in row) == ("pp" in kinds)
    late.check(5, "compute_fwd", late.seconds(5, 0), "time_max" if ranks > 1 else "time")
    if ranks > 1 and not kinds.startswith("pp") and not strategy.startswith(("accelerate", "deepspeed")):
        assert late.rows[5]["time/slow_rank"] == 0  # also where it holds up its group first, and that the others


@pytest.mark.soak
def test_a_slow_step_asks_for_a_trace(tmp_path: Path) -> None:
    words = ("strategy=ddp", "train.steps=20", "measure.trace_slow=true", "measure.trace_limit=1")
    run_late(tmp_path, f"16:forward:1:{LATE}", *words)
    # Any step of this busy machine may be slow enough; that one is, whichever were before it.
    (traced,) = (tmp_path / "run" / "traces").iterdir()
    assert 13 <= int(traced.name.removeprefix("step-")) <= 18
