"""When a rank counts as hanging, and which one is to blame; with no process and no clock."""

import pytest

from parallel.clock.phase_clock import Phase
from train.faults.beat import PHASES, LastBeat
from train.faults.recovery_config import RecoveryConfig
from train.faults.watch.judge import LONGEST_STRIDE_S, YIELD_S, Patience, Verdict, judge
from train.faults.watch.limits import Limits

LIMITS = Limits(start=1, load=2, first_step=3, step=4, eval=5, save=6)


def beat(phase: str = "compute_bwd", t: int = 0, steps_begun: int = 2) -> LastBeat:
    return LastBeat(phase, step=7, t=t, steps_begun=steps_begun, pid=1)


def test_every_phase_of_the_clock_has_a_beat() -> None:
    assert {phase.value for phase in Phase} < set(PHASES)


@pytest.mark.parametrize(
    ("phase", "steps_begun", "limit"),
    [
        ("init_model", 0, 1),
        ("ckpt_load", 0, 2),
        ("compute_fwd", 1, 3),
        ("log", 1, 3),
        ("data_wait", 2, 4),
        ("compute_opt", 9, 4),
        ("eval", 1, 5),
        ("ckpt_save", 9, 6),
        ("profile", 9, 6),
        ("shutdown", 9, 6),
    ],
)
def test_each_phase_has_its_limit(phase: str, steps_begun: int, limit: float) -> None:
    assert Limits.parse(LIMITS.word()).of(beat(phase, steps_begun=steps_begun)) == limit


def test_every_limit_of_the_configuration_counts() -> None:
    fields = {f"{name}_limit_s" for name in vars(LIMITS)}
    assert fields == {name for name in vars(RecoveryConfig()) if name.endswith("_limit_s")}


def test_patience_counts_what_it_saw() -> None:
    patience = Patience()
    assert patience.look(beat(t=1), now=100.0) == 0.0
    assert patience.look(beat(t=1), now=100.5) == 0.5
    assert patience.look(beat(t=1), now=101.0) == 1.0
    assert patience.look(beat(t=2), now=101.5) == 0.0  # another phase
    assert patience.look(beat(t=2), now=102.0) == 0.5


def test_a_machine_that_slept_has_not_hung() -> None:
    patience = Patience()
    patience.look(beat(), now=0.0)
    assert patience.look(beat(), now=3600.0) == LONGEST_STRIDE_S


def verdict(rank: int, seen_s: float, limit_s: float = 10.0, stopped: frozenset[int] = frozenset()) -> Verdict:
    """Rank 1 has been in its phase for longest."""
    return judge(rank, {0: beat(t=30), 1: beat(t=10), 2: beat(t=20)}, stopped, seen_s, limit_s)


def test_within_its_limit_a_rank_is_fine() -> None:
    assert {verdict(rank, seen_s=10.0) for rank in range(3)} == {Verdict.fine}


def test_without_a_limit_it_is_fine_for_ever() -> None:
    assert verdict(1, seen_s=1e9, limit_s=0.0) is Verdict.fine


def test_the_oldest_phase_is_to_blame() -> None:
    assert [verdict(rank, seen_s=10.1) for rank in range(3)] == [Verdict.waits, Verdict.hangs, Verdict.waits]


def test_one_that_stands_still_is_to_blame_whatever_its_beat() -> None:
    said = [verdict(rank, seen_s=10.1, stopped=frozenset({0})) for rank in range(3)]
    assert said == [Verdict.hangs, Verdict.waits, Verdict.waits]


def test_one_that_waits_in_vain_is_killed_in_the_end() -> None:
    assert verdict(0, seen_s=10.0 + YIELD_S) is Verdict.waits
    assert verdict(0, seen_s=10.1 + YIELD_S) is Verdict.hangs
