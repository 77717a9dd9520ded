"""One job run beside its reference, and what came of it."""

import time
from dataclasses import dataclass, replace
from functools import partial

from launch.verify.compare import FLOAT32, FLOAT64, Comparison, compare
from launch.verify.job import Job
from launch.verify.ranks import RankFailed, run_ranks
from launch.verify.routing import Choices
from launch.verify.trial import Trial, WholeStep, run_trial, whole_steps
from models.config import ConfigError
from parallel.traffic.tally import Traffic


@dataclass(frozen=True)
class Verdict:
    """What came of one job; None where it did not come to that."""

    job: Job
    comparison: Comparison | None
    failure: str | None
    """Why there is no comparison."""
    seconds: float
    traffic: Traffic | None = None
    """Of the last step, of all ranks."""
    predicted: Traffic | None = None
    """What the config says it is."""
    trace: str | None = None
    """Of the rank that failed."""
    elsewhere: str | None = None
    """Why it can be run on another device only; None if it was run."""

    @property
    def equal(self) -> bool:
        return self.comparison is not None and self.comparison.first is None


class References:
    """Runs of one process; layouts of the same scaled-down job share one."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._known: dict[str, tuple[list[WholeStep], Choices]] = {}

    def of(self, trial: Trial) -> tuple[list[WholeStep], Choices]:
        """The steps of `trial`, which is of one rank, and which experts its tokens took."""
        key = repr(trial)
        if key not in self._known:
            (record,) = run_ranks(1, self._device, partial(run_trial, trial))
            self._known[key] = whole_steps([record]), record.choices
        return self._known[key]


def judge(job: Job, device: str, references: References) -> Verdict:
    """Run `job` and its reference, and compare them."""
    started = time.monotonic()
    try:
        job.check_device(device)
    except ConfigError as elsewhere:
        return Verdict(job, None, None, 0.0, elsewhere=str(elsewhere))
    trial = job.trial
    try:
        reference, choices = references.of(trial.in_one_process(job.n_ranks))
        if not job.native:
            trial = replace(trial, pinned=choices)
        ours = whole_steps(run_ranks(job.n_ranks, device, partial(run_trial, trial)))
    except (RankFailed, ValueError) as error:
        trace = error.trace if isinstance(error, RankFailed) else None
        return Verdict(job, None, str(error), time.monotonic() - started, trace=trace)
    comparison = compare(ours, reference, FLOAT64 if job.native else FLOAT32, job.groups)
    seconds, last = time.monotonic() - started, ours[-1]
    if not job.native:  # says what it says by itself
        return Verdict(job, comparison, None, seconds)
    predicted = trial.predicted_traffic(job.n_ranks, int(last.dropped_LE.sum()))
    return Verdict(job, comparison, None, seconds, last.traffic, predicted)
