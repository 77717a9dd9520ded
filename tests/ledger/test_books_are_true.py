"""The books of jobs that went wrong, beside what an onlooker saw: every bucket within 1 % of the wall or 0.2 s a rank.

Faults come from `faults.inject`, in real processes, and the truth from stamps that the books do not read.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from harness.observed import Life, observed
from harness.torchrun import REPOSITORY, start_torchrun
from harness.true_books import LOG, START, STEPS, End, Truth, differences, truth

from train.ledger.books import Books
from train.ledger.buckets import IN_STEPS, UNDIVIDED
from train.ledger.fold import fold
from train.ledger.read import read_ledger

JOB = (
    "model=tiny",
    "train.device=cpu",
    "strategy=fsdp",
    "train.steps=12",
    "train.log_every=1",
    "train.eval_sequences=0",
    "logging=off",
    "checkpoint.every=4",
)
GROUPS = {
    **dict.fromkeys((*IN_STEPS, UNDIVIDED, "warmup_compile"), STEPS),
    **dict.fromkeys(("init_process", "init_dist", "init_model"), START),
    **dict.fromkeys(("log", "other"), LOG),
}
"""Buckets that the onlooker cannot tell apart."""


@dataclass(frozen=True)
class Case:
    """A job that goes wrong, and what is known of it."""

    name: str
    faults: str
    resumed_after: tuple[int, ...] = (0,)
    """Of each attempt."""
    causes: tuple[str | None, ...] = (None,)
    """Why each attempt's last steps were lost."""
    words: tuple[str, ...] = ()
    still: str | None = None
    """The fault at which nothing moved any more; None: when the first worker was gone."""
    env: dict[str, str] = field(default_factory=dict)


CASES = [
    Case("killed in a step", "{what: sigkill, rank: 1, step: 7}", (0, 4), ("crash", None)),
    Case("killed in a save", "{what: sigkill, rank: 1, step: 8, place: save}", (0, 4), ("crash", None)),
    Case("killed at the rename", "{what: sigkill, rank: 0, step: 8, place: rename}", (0, 4), ("crash", None)),
    Case(
        "killed in a load",
        "{what: sigkill, rank: 0, step: 7}, {what: sigkill, rank: 1, place: load, attempt: 2}",
        (0, 4, 4),
        ("crash", "crash", None),
    ),
    Case("crashed before the first step", "{what: crash, rank: 1, place: start}", (0, 0), ("crash", None)),
    Case("preempted, and on at the next step", "{what: sigterm, rank: 1, step: 6}", (0, 7), (None, None)),
    Case(
        "hung",
        "{what: sigstop, rank: 1, step: 7}",
        (0, 4),
        ("hang", None),
        ("recovery.step_limit_s=3",),
        still="sigstop",
    ),
    Case(
        "a newest checkpoint that is damaged",
        "{what: corrupt, rank: 1, step: 8}, {what: sigkill, rank: 0, step: 11}",
        (0, 4),
        ("crash", None),
    ),
    Case(
        "a clock set back",
        "{what: sigkill, rank: 1, step: 7}",
        (0, 4),
        ("crash", None),
        env={"STAMPED_CLOCK_BACK_S": "3600"},
    ),
    Case("a slow save", "{what: slow, rank: 1, step: 4, place: save, seconds: 1.5}"),
    Case("a slow disk behind the steps", "{what: slow, rank: 1, step: 4, place: write, seconds: 3}"),
    Case("a save that fails", "{what: fail, rank: 1, step: 8}"),
    Case("a slow rank", "{what: slow, rank: 1, step: 7, seconds: 1.5}"),
    Case("slow data", "{what: slow, rank: 0, step: 7, place: data, seconds: 1.5}"),
]
QUICK = {"killed in a step", "preempted, and on at the next step", "hung"}
"""At 2 ranks in `make test`; all of them at 2 and 4 in `make soak`."""


@pytest.mark.parametrize(
    ("case", "ranks"),
    [
        pytest.param(
            case,
            ranks,
            id=f"{case.name}-{ranks}",
            marks=() if ranks == 2 and case.name in QUICK else pytest.mark.soak,
        )
        for case in CASES
        for ranks in (2, 4)
    ],
)
def test_every_bucket_is_what_an_onlooker_saw(case: Case, ranks: int, tmp_path: Path) -> None:
    run = tmp_path / "run"
    lives = launch(run, ranks, case.words, case.faults, len(case.causes) - 1, case.env)
    ends = [End(cause, injected(run, case.still) if cause and case.still else None) for cause in case.causes]
    true = truth(tmp_path / "stamps", lives, ranks, case.resumed_after, ends)
    books = fold(read_ledger(run))
    compare(books, true, ranks)


def launch(
    run: Path, ranks: int, words: Sequence[str], faults: str, restarts: int, env: dict[str, str] | None = None
) -> list[Life]:
    """The job to its end, restarted by torchrun as often; the lives of its workers."""
    arguments = (str(run.parent / "stamps"), *JOB, *words, f"run.dir={run}", f"faults.inject=[{faults}]")
    env = {"PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "tests"))), **(env or {})}
    started = start_torchrun(
        ranks, *arguments, module="harness.stamped", env=env, agent_words=[f"--max-restarts={restarts}"]
    )
    with started, observed(started) as lives:
        done = started.wait(240)
    assert done.returncode == 0, done.stderr[-4000:]
    return lives


def injected(run: Path, what: str, edge: str = "begin") -> int:
    """The injector's own stamp of its only such fault, ns."""
    lines = [json.loads(line) for path in (run / "faults").iterdir() for line in path.read_text().splitlines()]
    (found,) = (line for line in lines if line["what"] == what)
    return int(found[edge])


def compare(books: Books, true: Truth, ranks: int) -> None:
    """Say all that differ by more than 1 % of the wall or 0.2 s a rank, of which the larger."""
    assert sum(books.buckets.values()) == books.total  # to the nanosecond
    ours: dict[str, float] = {}
    for name, ns in books.buckets.items():
        ours[GROUPS.get(name, name)] = ours.get(GROUPS.get(name, name), 0.0) + ns / 1e9
    allowed = ranks * max(0.2, 0.01 * books.wall_ns / 1e9)
    table = differences({**true.buckets, "total": true.total}, {**ours, "total": books.total / 1e9})
    print(json.dumps({name: [round(a, 3), round(b, 3)] for name, (a, b) in table.items()}))
    wrong = {name: pair for name, pair in table.items() if abs(pair[0] - pair[1]) > allowed}
    assert not wrong, table
    assert books.mfu_in_step is not None
    assert books.speed_of_light == pytest.approx(books.ettr * books.mfu_in_step, rel=1e-12)
