"""What a job does about steps that are not finite, of which the engine left the updates out.

    step          7 issued    8 issued    9 issued                         row, save
    looked at                 7           8           …   one step late,   and the last one where the device is drained

So nobody waits for the device: while the host learns of one step, the next one is already enqueued. All ranks look at
the same flags at the same places, and so agree without a word; on CPU they look as late.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from train.failure import DIVERGED, JobEnds
from train.faults.recovery_config import NonFinite, RecoveryConfig
from train.late_number import LateNumber
from train.ledger.ledger import Ledger

ADVICE = "lower optim.lr, or look at the data of that step"


class NonFiniteSteps:
    """Counts them on one rank, and says when to go back. All ranks call its methods together."""

    def __init__(self, recovery: RecoveryConfig, ledger: Ledger, say: Callable[[str], None] | None) -> None:
        """`say`: where a line for the user goes; None on all ranks but one."""
        self.skipped = 0
        """Of the job's steps that were looked at; where a job goes on from a checkpoint, the loop sets it."""
        self._recovery, self._ledger, self._say = recovery, ledger, say
        self._late: tuple[int, LateNumber] | None = None
        self._in_a_row: list[int] = []
        self._since_row = 0
        self._rollbacks, self._furthest = 0, 0
        """How often the job went back, since a step after the last one that it went back for was finite; that one."""

    @property
    def in_a_row(self) -> int:
        """Steps that were left out at the end of those looked at."""
        return len(self._in_a_row)

    @property
    def must_go_back(self) -> bool:
        """Whether there were too many in a row."""
        return self.in_a_row >= self._recovery.non_finite_in_a_row

    def issued(self, step: int, left_out: Tensor) -> None:
        """`step` is under way, its flag among it: look at the one before.

        Raises:
            JobEnds: if that one was not finite, and the job is to fail then.
        """
        self.settle()
        self._late = step, LateNumber(left_out)

    def settle(self) -> None:
        """Look at the last step too. Waits for it, and raises as `issued`."""
        if self._late is None:
            return
        (step, flag), self._late = self._late, None
        if not flag.read():
            if not self.must_go_back:  # else this step was begun before that was known
                self._in_a_row = []
                if step > self._furthest:
                    self._rollbacks = 0
            return
        self._in_a_row.append(step)
        self._since_row += 1
        self.skipped += 1
        self._ledger.write("skipped", step=step)
        if self._recovery.non_finite is NonFinite.fail:
            raise JobEnds(
                "diverged",
                DIVERGED,
                f"step {step}: the loss or the gradient norm is not finite; {ADVICE}, or set recovery.non_finite=skip",
            )
        if self._say:
            in_a_row = f" ({self.in_a_row} in a row)" if self.in_a_row > 1 else ""
            self._say(f"step {step}: the loss or the gradient norm is not finite; its update was left out{in_a_row}")

    def take_count(self) -> int:
        """How many there were since the last call."""
        count, self._since_row = self._since_row, 0
        return count

    def went_back(self, to_step: int, passed_over: Sequence[int] = ()) -> None:
        """The job went back to the checkpoint after `to_step`; 0: there is none. `passed_over`: steps of newer ones,
        which are damaged.

        Raises:
            JobEnds: if there is none, or it went back often enough for the same steps.
        """
        first, last = self._in_a_row[0], self._in_a_row[-1]
        what = f"steps {first} to {last} were not finite" if last > first else f"step {first} was not finite"
        if to_step == 0:
            raise JobEnds(
                "diverged",
                DIVERGED,
                f"{what}, and there is no checkpoint to go back to: the job has diverged; {ADVICE}; with "
                "checkpoint.every there would be one",
            )
        self._rollbacks += 1
        if self._rollbacks > self._recovery.rollbacks:
            raise JobEnds(
                "diverged",
                DIVERGED,
                f"{what}, and recovery.rollbacks={self._recovery.rollbacks} did not help: the job has diverged; "
                f"{ADVICE}",
            )
        self._furthest, self._in_a_row = max(last, self._furthest), []
        self._ledger.write("rollback", step=to_step, cause="non_finite", passed_over=passed_over)
        if self._say:
            self._say(f"{what}: went back to the checkpoint after step {to_step}")
