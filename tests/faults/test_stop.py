"""What ranks ask for, and what all of them make of it; names of folders; stamps of launchers."""

import os
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from train.config import RunConfig
from train.failure import FAILED, JobEnds
from train.faults import fence, stop
from train.faults.beat import Beat, read_beat
from train.faults.fence import Fence
from train.faults.stop import Cause, StopAgreement
from train.ledger.events import boot_id, now_ns, take_attempt
from train.ledger.launcher import launched, stamp, submitted
from train.run_folder import new_folder


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[StopAgreement]:
    """Of a job of three, that look as often as they can."""
    monkeypatch.setattr(fence, "BETWEEN_LOOKS_S", 0.0)
    monkeypatch.setattr(stop, "BETWEEN_LOOKS_S", 0.0)
    attempt = take_attempt(tmp_path)
    return [StopAgreement(tmp_path, rank, 3, Fence(tmp_path, attempt)) for rank in range(3)]


def step(ranks: list[StopAgreement], left_out: Sequence[int] = ()) -> set[Cause | None]:
    total = torch.tensor(float(sum(rank.own(rank.rank in left_out) for rank in ranks)))
    return {rank.agreed(total) for rank in ranks}


def test_nothing_is_asked_for(ranks: list[StopAgreement]) -> None:
    assert [step(ranks) for _ in range(3)] == [{None}] * 3


@pytest.mark.parametrize("told", [[0], [2], [0, 1, 2]])
def test_what_one_rank_is_told_all_know_a_step_later(told: list[int], ranks: list[StopAgreement]) -> None:
    step(ranks)
    for rank in told:
        ranks[rank].preempted = True
    assert step(ranks) == {None}
    assert step(ranks) == {Cause.preempted}


def test_the_file_goes_before_the_signal_and_the_fence_before_both(ranks: list[StopAgreement], tmp_path: Path) -> None:
    for rank in ranks:
        rank.preempted = True
    (tmp_path / "STOP").touch()
    step(ranks)
    take_attempt(tmp_path)
    assert step(ranks) == {Cause.stopped}
    assert step(ranks) == {Cause.fenced}


def test_the_sum_of_a_million_ranks_is_exact(tmp_path: Path) -> None:
    n = 999_999
    rank = StopAgreement(tmp_path, 1, n, Fence(tmp_path, 1))
    total = n * stop.UNIT[Cause.preempted] + stop.UNIT[Cause.fenced] + stop.UNIT[Cause.stopped]
    for left_out in (0, n):
        for asked, cause in ((total, Cause.fenced), (n, Cause.preempted), (1 << 20, Cause.stopped), (0, None)):
            rank.agreed(torch.tensor(asked + left_out * stop.LEFT_OUT, dtype=torch.float64))
            assert rank.agreed(torch.tensor(0.0, dtype=torch.float64)) is cause


def test_a_step_that_some_ranks_alone_left_out_ends_the_job_on_all(ranks: list[StopAgreement]) -> None:
    assert step(ranks, left_out=[0, 1, 2]) == {None}
    assert step(ranks, left_out=[1]) == {None}
    for rank in ranks:
        with pytest.raises(JobEnds, match=r"^1 of 3 ranks alone left out a step as not finite: ") as ended:
            rank.agreed(torch.tensor(0.0))
        assert (ended.value.cause, ended.value.code) == ("failed", FAILED)


def test_each_cause_has_a_code_of_its_own() -> None:
    codes = {cause.code for cause in Cause}
    assert len(codes) == len(Cause)
    assert not codes & {0, 1, 2, 130}


def test_a_fence_looks_once_a_second_or_at_once(tmp_path: Path) -> None:
    mine = Fence(tmp_path, take_attempt(tmp_path))
    take_attempt(tmp_path)
    assert mine.still_ours()
    assert not mine.still_ours(at_once=True)
    assert not mine.still_ours()


def test_a_folder_that_cannot_be_read_now_ends_no_job(ranks: list[StopAgreement], tmp_path: Path) -> None:
    step(ranks)
    ledger, aside = tmp_path / "ledger", tmp_path / "aside"
    ledger.rename(aside)
    ledger.symlink_to("LEDGER" * 100)  # whoever looks there is told that it cannot be
    (tmp_path / "STOP").symlink_to("STOP" * 100)
    assert step(ranks) == {None}
    ledger.unlink()
    aside.rename(ledger)
    take_attempt(tmp_path)
    step(ranks)
    assert step(ranks) == {Cause.fenced}


def test_a_beat_that_cannot_be_written_ends_no_job(tmp_path: Path) -> None:
    beat = Beat(tmp_path, 0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        beat.at("compute_fwd", 5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    beat.at("compute_bwd")
    last = read_beat(tmp_path, 0)
    assert last is not None
    assert (last.phase, last.step) == ("compute_bwd", 5)


def test_a_launcher_that_starts_again_has_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunConfig(root=str(tmp_path))
    first = new_folder(run, "tiny", "ddp", launcher=os.getppid())
    assert first.name.endswith(f"-{os.getppid()}")
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600)  # the clock was set
    assert first != new_folder(run, "tiny", "ddp", launcher=os.getppid())
    first.mkdir()
    assert first == new_folder(run, "tiny", "ddp", launcher=os.getppid())
    assert first != new_folder(run, "tiny", "ddp", launcher=os.getpid())


def test_launchers_stamps_are_read() -> None:
    before = now_ns()
    assert before <= (launched(stamp()) or 0) <= now_ns()
    assert launched({}) is None
    assert launched({"SWITCHYARD_LAUNCHED": "another-boot 5"}) is None
    assert launched({"SWITCHYARD_LAUNCHED": boot_id()}) is None
    assert submitted({"SWITCHYARD_SUBMITTED": "7"}) == 7
    assert submitted({"SWITCHYARD_SUBMITTED": "yesterday"}) is None
    assert submitted({}) is None
