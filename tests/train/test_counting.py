"""measure.counts: what an attempt has to say of its steps."""

from pathlib import Path

from parallel.comm import Communicator
from train.counting import Counting
from train.faults.fence import Fence
from train.ledger.events import take_attempt
from train.metrics.counts import COUNTS_FILE
from train.start.assembly import forget_counts


def test_an_attempt_without_a_step_has_no_counts() -> None:
    """A job that had done all its steps is started again for its summary alone."""
    counting = Counting(Communicator(), metered=False)
    assert counting.counts() is None
    with counting.of_step():
        pass
    counts = counting.counts()
    assert counts is not None
    assert counts.late_graphs == 0


def test_counts_of_an_earlier_attempt_are_forgotten_by_the_newest(tmp_path: Path) -> None:
    counts = tmp_path / COUNTS_FILE
    counts.touch()
    fence = Fence(tmp_path, take_attempt(tmp_path))
    newer = Fence(tmp_path, take_attempt(tmp_path))
    forget_counts(tmp_path, fence)
    assert counts.exists(), "the newer one's"
    forget_counts(tmp_path, newer)
    assert not counts.exists()
    counts.mkdir()
    forget_counts(tmp_path, newer)  # what cannot be taken away stays
    assert counts.exists()
