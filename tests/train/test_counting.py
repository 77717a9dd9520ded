"""measure.counts: what an attempt has to say of its steps."""

from parallel.comm import Communicator
from train.counting import Counting


def test_an_attempt_without_a_step_has_no_counts() -> None:
    """A job that had done all its steps is started again for its summary alone."""
    counting = Counting(Communicator(), metered=False)
    assert counting.counts() is None
    with counting.of_step():
        pass
    counts = counting.counts()
    assert counts is not None
    assert counts.late_graphs == 0
