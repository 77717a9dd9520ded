"""One job run beside its reference, and what came of it."""

import time
from dataclasses import dataclass
from functools import partial

from launch.verify.compare import FLOAT64, Comparison, compare
from launch.verify.job import Job
from launch.verify.ranks import RankFailed, run_ranks
from launch.verify.trial import Trial, WholeStep, run_trial, whole_steps
from parallel.traffic.tally import Traffic


@dataclass(frozen=True)
class Verdict:
    """What came of one job."""

    job: Job
    comparison: Comparison | None
    """None: it did not come to one."""
    failure: str | None
    """Why not; None if it did."""
    seconds: float
    traffic: Traffic | None = None
    """Of the last step, of all ranks."""
    predicted: Traffic | None = None
    """What the config says it is."""

    @property
    def equal(self) -> bool:
        return self.comparison is not None and self.comparison.first is None


class References:
    """Runs of one process; layouts of the same scaled-down job share one."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._known: dict[str, list[WholeStep]] = {}

    def of(self, trial: Trial) -> list[WholeStep]:
        """The steps of `trial`, which is of one rank."""
        key = repr(trial)
        if key not in self._known:
            self._known[key] = whole_steps(run_ranks(1, self._device, partial(run_trial, trial)))
        return self._known[key]


def judge(job: Job, device: str, references: References) -> Verdict:
    """Run `job` and its reference, and compare them."""
    started = time.monotonic()
    try:
        reference = references.of(job.trial.in_one_process(job.n_ranks))
        ours = whole_steps(run_ranks(job.n_ranks, device, partial(run_trial, job.trial)))
    except (RankFailed, ValueError) as error:
        return Verdict(job, None, str(error), time.monotonic() - started)
    comparison = compare(ours, reference, FLOAT64, job.groups)
    last = ours[-1]
    predicted = job.trial.predicted_traffic(job.n_ranks, int(last.dropped_LE.sum()))
    return Verdict(job, comparison, None, time.monotonic() - started, last.traffic, predicted)
