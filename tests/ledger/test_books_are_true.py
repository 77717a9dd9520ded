"""The books of jobs that went wrong, beside what an onlooker saw: every bucket within 1 % of the wall or 0.2 s a rank.

Faults come from `faults.inject`, in real processes, and the truth from stamps that the books do not read.
"""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from harness.observed_job import all_excess_s, compare, injected, lived, start
from harness.true_books import LOG, STEPS, Account, End, truth

from train.ledger.fold import fold
from train.ledger.read import read_ledger

SLOW_RANK = "{what: slow, rank: 1, step: 7, seconds: 1.5}"
SLOW_DATA = "{what: slow, rank: 0, step: 7, place: data, seconds: 1.5}"


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
    of_step: dict[int, str] = field(default_factory=dict)
    """As Account has it."""
    damaged: int = 0
    """The step of a checkpoint that was."""
    slept: str | None = None
    """Where a rank slept before the onlooker's stamp of what it slept at: only the injector saw that."""
    late: tuple[int, str] | None = None
    """The rank that slept in step 7, and in which bucket: all others waited for it."""


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
        damaged=8,
    ),
    Case(
        "a clock set back",
        "{what: sigkill, rank: 1, step: 7}",
        (0, 4),
        ("crash", None),
        env={"STAMPED_CLOCK_BACK_S": "3600"},
    ),
    Case("a step that is not finite", "{what: non_finite, rank: 1, step: 7}", of_step={7: "skipped_update"}),
    Case(
        "a rollback",
        "{what: non_finite, rank: 1, step: 6}, {what: non_finite, rank: 1, step: 7}",
        words=("recovery.non_finite_in_a_row=2",),
        of_step=dict.fromkeys((5, 6, 7), "lost_work/nan"),  # a row a step: it goes back at once
    ),
    Case("a slow save", "{what: slow, rank: 1, step: 4, place: save, seconds: 1.5}", slept="ckpt_save"),
    Case("a slow disk behind the steps", "{what: slow, rank: 1, step: 4, place: write, seconds: 3}"),
    Case("a save that fails", "{what: fail, rank: 1, step: 8}"),
    Case("a slow rank", SLOW_RANK, late=(1, "compute_fwd")),
    Case("a slow rank in rows of five", SLOW_RANK, late=(1, "compute_fwd"), words=("train.log_every=5",)),
    Case("slow data", SLOW_DATA, slept=STEPS, late=(0, "data_wait")),
    Case("slow data in rows of five", SLOW_DATA, slept=STEPS, late=(0, "data_wait"), words=("train.log_every=5",)),
]
QUICK = {"killed in a step"}
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
    restarts = len(case.causes) - 1
    lives = lived(start(run, ranks, *case.words, faults=case.faults, restarts=restarts, env=case.env))
    still = injected(run, case.still) if case.still else None
    ends = [End(cause, still if cause else None, case.damaged) for cause in case.causes]
    true = truth(tmp_path / "stamps", lives, Account(ranks, case.resumed_after, ends, case.of_step))
    slept_s = (injected(run, "slow", "end") - injected(run, "slow")) / 1e9 if case.slept or case.late else 0.0
    if case.slept:
        true.buckets[LOG] -= slept_s
        true.buckets[case.slept] += slept_s
    if case.late:
        late, bucket = case.late
        for rank in range(ranks):
            expected = {bucket if rank == late else "waits": slept_s}
            for name, s in all_excess_s(run, rank, step=7).items():
                assert abs(s - expected.get(name, 0.0)) < 0.2, (rank, name, s)
    compare(fold(read_ledger(run)), true, ranks)
