"""The phase clock with an injected time, and waits split between the wire, a late rank and an idle stage."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch.distributed as dist
from harness.worker_pool import WorkerPool

from parallel.clock.phase_clock import Clock, Phase, PhaseClock, Waited
from parallel.clock.split import SplitWaits, split_waits
from parallel.comm import Communicator
from parallel.comm_kind import CommKind
from train.metrics.breakdown import APART, BUCKETS
from train.metrics.step_time import time_row


@dataclass
class DeviceTime:
    """A time source whose device is at `passed_until`, while marks are set at `now`."""

    name: str = "injected"
    now: float = 0.0
    passed_until: float = float("inf")
    reused: list[float] = field(default_factory=list)
    finished: list[float] = field(default_factory=list)

    def mark(self) -> float:
        return self.now

    def passed(self, mark: float) -> bool:
        return mark <= self.passed_until

    def finish(self, mark: float) -> None:
        self.finished.append(mark)
        self.passed_until = float("inf")

    def seconds(self, begin: float, end: float) -> float:
        assert self.passed(end), "read before the device was there"
        return end - begin

    def reuse(self, marks: Sequence[Any]) -> None:
        self.reused.extend(marks)


def a_step(clock: PhaseClock, time: DeviceTime, data: float, forward: float, wait: float, backward: float) -> None:
    clock.enter(Phase.data_wait)
    time.now += data
    clock.enter(Phase.compute_fwd)
    time.now += forward
    with clock.waiting(CommKind.ep, "all_to_all", None):
        time.now += wait
    clock.enter(Phase.compute_bwd)
    time.now += backward
    clock.enter(Phase.compute_opt)
    time.now += 1
    clock.enter(Phase.log)


def test_a_wait_for_what_is_over_has_no_length_however_slow_the_host() -> None:
    reused = []
    for over in (True, False):
        time = DeviceTime()
        clock = PhaseClock(time, wall=lambda time=time: time.now)
        clock.end_window()
        clock.enter(Phase.compute_fwd)
        with clock.waiting(CommKind.fsdp, "all_gather", None, over=over):
            time.now += 25
        clock.enter(Phase.log)
        window = clock.end_window()
        assert [wait.seconds for wait in window.waits] == [0 if over else 25]
        assert window.phase_s[Phase.compute_fwd] == 25
        reused.append(len(time.reused))
    assert reused[1] - reused[0] == 1, "its one mark is given back once"


def test_phases_tile_the_time_and_waits_lie_inside_them() -> None:
    time = DeviceTime()
    clock = PhaseClock(time, wall=lambda: time.now)
    clock.end_window()
    a_step(clock, time, data=2, forward=4, wait=8, backward=16)
    time.now += 32
    a_step(clock, time, data=64, forward=128, wait=256, backward=512)
    with clock.during(Phase.eval):
        time.now += 1024
        with clock.waiting(CommKind.dp, "all_reduce", None):
            time.now += 2048
    window = clock.end_window()
    assert window.phase_s == {
        Phase.data_wait: 66,
        Phase.compute_fwd: 4 + 8 + 128 + 256,
        Phase.compute_bwd: 528,
        Phase.compute_opt: 2,
        Phase.log: 32,
        Phase.eval: 3072,
        Phase.ckpt_save: 0,
        Phase.profile: 0,
    }
    assert sum(window.phase_s.values()) == window.wall_s == time.now
    assert window.step_s == [2 + 4 + 8 + 16 + 1, 64 + 128 + 256 + 512 + 1]
    assert window.steps == 2
    # Of the evaluation, what it waited for is the evaluation's.
    assert window.waits == [Waited(CommKind.ep, "all_to_all", None, Phase.compute_fwd, w) for w in (8, 256)]
    empty = clock.end_window()
    assert (empty.steps, empty.wall_s, empty.waits, sum(empty.phase_s.values())) == (0, 0, [], 0)


def test_marks_are_read_when_the_device_has_passed_them_and_waited_for_only_at_a_windows_end() -> None:
    time = DeviceTime(passed_until=0)
    clock = PhaseClock(time, wall=lambda: time.now)
    clock.end_window()
    time.passed_until, time.finished = 0, []
    a_step(clock, time, data=1, forward=1, wait=1, backward=1)
    before = len(time.reused)
    a_step(clock, time, data=1, forward=1, wait=1, backward=1)
    assert len(time.reused) == before, "nothing was passed, nothing was read"
    time.passed_until = 6  # the first step's last mark is at 5
    a_step(clock, time, data=1, forward=1, wait=1, backward=1)
    assert len(time.reused) > before
    assert not time.finished
    assert clock.end_window().step_s == [5, 5, 5]
    # Then all are waited for: the window's own end, and that of each bracket, which may be on another stream.
    assert time.finished == [time.now, 8.0, 13.0]


def test_ranges_show_phases_waits_and_starts() -> None:
    opened: list[str] = []

    class Range:
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> None:
            opened.append(f"+{self.name}")

        def __exit__(self, *_: object) -> None:
            opened.append(f"-{self.name}")

    time = DeviceTime()
    clock = PhaseClock(time, wall=lambda: time.now)
    clock.ranges = Range
    clock.enter(Phase.data_wait)
    clock.enter(Phase.compute_fwd)
    with clock.issuing(CommKind.tp, "all_gather"):
        pass
    with clock.waiting(CommKind.tp, "all_gather", None):
        pass
    with clock.waiting(CommKind.tp, "all_gather", None, number=7, over=True):
        pass
    clock.ranges = None
    clock.enter(Phase.log)
    assert opened == [
        "+phase/data_wait",
        "-phase/data_wait",
        "+phase/compute_fwd",
        "+comm/tp/all_gather",
        "-comm/tp/all_gather",
        "+wait/tp/all_gather",
        "-wait/tp/all_gather",
        "+over/tp/all_gather#7",
        "-over/tp/all_gather#7",
        "-phase/compute_fwd",
    ]


def test_a_clock_that_stands_still_times_nothing() -> None:
    clock = Clock()
    clock.enter(Phase.compute_fwd)
    with clock.during(Phase.eval), clock.waiting(CommKind.dp, "all_reduce", None):
        pass
    assert clock.end_window() is None


def split_on_this_rank(waits: list[list[tuple[str, str, str, float]]], pipelined: bool) -> SplitWaits:
    """`waits` by rank: kind, operation, group (pair or world), seconds. Ranks 0 and 1 are a pair, 2 and 3 another."""
    rank = dist.get_rank()
    pair, _ = dist.new_subgroups_by_enumeration([[0, 1], [2, 3]])
    own = [
        Waited(CommKind(kind), operation, pair if group == "pair" else None, Phase.compute_fwd, seconds)
        for kind, operation, group, seconds in waits[rank]
    ]
    return split_waits(own, Communicator(), pipelined)


def test_the_last_rank_to_come_waits_for_the_wire_alone(pool: WorkerPool) -> None:
    waits = [
        [("ep", "all_to_all", "pair", 5.0), ("control", "all_reduce", "world", 1.0), ("ep", "all_to_all", "pair", 2.0)],
        [("ep", "all_to_all", "pair", 3.0), ("control", "all_reduce", "world", 9.0), ("ep", "all_to_all", "pair", 4.0)],
        [("ep", "all_to_all", "pair", 7.0), ("control", "all_reduce", "world", 4.0), ("ep", "all_to_all", "pair", 7.0)],
        [("ep", "all_to_all", "pair", 8.0), ("control", "all_reduce", "world", 2.0), ("ep", "all_to_all", "pair", 6.5)],
    ]
    splits: list[SplitWaits] = pool.run(4, split_on_this_rank, waits, False)
    assert [split.exposed_s[CommKind.ep] for split in splits] == [3 + 2, 3 + 2, 7 + 6.5, 7 + 6.5]
    assert [split.exposed_s[CommKind.control] for split in splits] == [1] * 4
    assert [split.sync_s for split in splits] == [2 + 0 + 0, 0 + 8 + 2, 0 + 3 + 0.5, 1 + 1 + 0]
    assert [split.bubble_s for split in splits] == [0] * 4


def test_in_a_pipeline_ranks_wait_for_stages(pool: WorkerPool) -> None:
    waits = [
        [("pp", "receive", "pair", 3.0), ("pp", "send", "pair", 0.5), ("control", "all_reduce", "world", 6.0)],
        [("pp", "send", "pair", 0.25), ("dp", "all_reduce", "world", 1.0)],
    ]
    waits[1][1] = ("control", "all_reduce", "world", 2.0)
    rows = [*waits, *waits]
    splits: list[SplitWaits] = pool.run(4, split_on_this_rank, rows, True)
    assert [split.bubble_s for split in splits[:2]] == [3 + 4, 0]
    assert [split.exposed_s[CommKind.pp] for split in splits[:2]] == [0.5, 0.25]
    assert [split.exposed_s[CommKind.control] for split in splits[:2]] == [2, 2]
    assert [split.sync_s for split in splits] == [0] * 4


def test_ranks_that_waited_unequally_often_keep_what_they_waited(pool: WorkerPool) -> None:
    """And nobody hangs or dies of it."""
    rows = [[("ep", "all_to_all", "pair", 1.0 + n)] * n for n in (2, 3, 2, 2)]
    splits: list[SplitWaits] = pool.run(4, split_on_this_rank, rows, False)
    assert [split.exposed_s[CommKind.ep] for split in splits] == [6, 12, 6, 6]
    assert [split.sync_s for split in splits] == [0] * 4


def test_the_rank_that_waits_least_is_the_slow_one() -> None:
    """Of 4 ranks in pairs, 3 is late: 2 waits for it in the pair, then 0 and 1 wait for both."""
    by_rank = {name: [0.0] * 4 for name in (*BUCKETS, *APART)}
    row = time_row(by_rank | {"sync_wait": [1.0, 1.0, 1.0, 0.01]}, 1)
    assert row["time/slow_rank"] == 3
    assert row["time/slow_rank_share"] == pytest.approx(1 - 0.01 / 0.7525)
    # In a pipeline others may wait for a stage.
    row = time_row(by_rank | {"sync_wait": [0.2, 0.2, 0.0, 0.0], "bubble": [0.0, 0.0, 1.0, 0.1]}, 1)
    assert row["time/slow_rank"] == 3
    assert "time/slow_rank" not in time_row(by_rank, 1)
