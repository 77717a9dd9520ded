"""When the host learns of a step that was left out, what it says and writes, and when it goes back or gives up."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from train.failure import DIVERGED, JobEnds
from train.faults.non_finite import NonFiniteSteps
from train.faults.recovery_config import NonFinite, RecoveryConfig
from train.ledger.ledger import Ledger

Made = Callable[..., NonFiniteSteps]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def make(tmp_path: Path, said: list[str]) -> Made:
    return lambda **recovery: NonFiniteSteps(RecoveryConfig(**recovery), Ledger(tmp_path / "ledger"), said.append)


def events(folder: Path) -> list[tuple]:
    rows = [json.loads(line) for line in (folder / "ledger").read_text().splitlines()]
    return [(row["ev"], row["step"]) for row in rows]


def issue(steps: NonFiniteSteps, first: int, flags: list[int]) -> list[bool]:
    """After each of some steps, whether the job is to go back."""
    told = []
    for step, flag in enumerate(flags, start=first):
        steps.issued(step, torch.tensor(bool(flag)))
        told.append(steps.must_go_back)
    return told


def test_one_step_late_or_where_the_device_is_drained(make: Made, said: list[str], tmp_path: Path) -> None:
    steps = make()
    issue(steps, 1, [0, 1])
    assert (steps.in_a_row, said, events(tmp_path)) == (0, [], [])
    issue(steps, 3, [0])
    assert steps.in_a_row == 1
    issue(steps, 4, [1])
    assert steps.in_a_row == 0
    steps.settle()
    steps.settle()
    assert steps.in_a_row == 1
    assert events(tmp_path) == [("skipped", 2), ("skipped", 4)]
    assert said == [f"step {n}: the loss or the gradient norm is not finite; its update was left out" for n in (2, 4)]
    assert (steps.take_count(), steps.take_count()) == (2, 0)


def test_too_many_in_a_row(make: Made, said: list[str], tmp_path: Path) -> None:
    steps = make()
    assert issue(steps, 1, [1, 1, 0, 1, 1, 1]) == [False] * 6
    assert issue(steps, 7, [0]) == [True]
    steps.settle()
    assert steps.must_go_back  # step 7 was begun before that was known
    steps.went_back(2)
    assert not steps.must_go_back
    assert said[-2:] == [
        "step 6: the loss or the gradient norm is not finite; its update was left out (3 in a row)",
        "steps 4 to 6 were not finite: went back to the checkpoint after step 2",
    ]
    assert events(tmp_path)[-1] == ("rollback", 2)


def go_back(steps: NonFiniteSteps, to_step: int, flags: list[int]) -> None:
    """From what came of the steps after `to_step`."""
    issue(steps, to_step + 1, flags)
    steps.settle()
    assert steps.must_go_back
    steps.went_back(to_step)


def test_so_often_for_the_same_steps(make: Made) -> None:
    """Whatever was saved in between; until one after them is finite."""
    steps = make(non_finite_in_a_row=2, rollbacks=2)
    go_back(steps, 2, [0, 1, 1])
    go_back(steps, 3, [1, 0, 1, 1])  # 4 and 5, then 6 and 7: beyond 5 nothing was finite
    go_back(steps, 7, [0, 1, 1])  # of step 8 it was
    go_back(steps, 8, [0, 1, 1])
    issue(steps, 9, [1, 1])
    steps.settle()
    with pytest.raises(JobEnds, match=r"^steps 9 to 10 were not finite, and recovery.rollbacks=2 did not") as ended:
        steps.went_back(8)
    assert (ended.value.cause, ended.value.code) == ("diverged", DIVERGED)
    assert "\n" not in str(ended.value)


def test_nothing_to_go_back_to(make: Made) -> None:
    steps = make(non_finite_in_a_row=2)
    issue(steps, 1, [1, 1])
    steps.settle()
    with pytest.raises(JobEnds, match=r"^steps 1 to 2 were not finite, and there is no checkpoint to go back to"):
        steps.went_back(0)


def test_fail_ends_the_job(make: Made, tmp_path: Path) -> None:
    steps = make(non_finite=NonFinite.fail)
    issue(steps, 1, [0, 1])
    with pytest.raises(JobEnds, match=r"^step 2: the loss or the gradient norm is not finite; lower optim.lr") as ended:
        steps.settle()
    assert (ended.value.cause, ended.value.code) == ("diverged", DIVERGED)
    assert events(tmp_path) == [("skipped", 2)]
