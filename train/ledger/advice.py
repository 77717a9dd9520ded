"""How often to save: Young's and Daly's interval, from what this job measured of itself.

With w the seconds that a save holds up training, u0 those of a restart, and MTTF the mean up time between failures,

    expected ETTR = (1 − (u0 + Δt/2) / MTTF) / (1 + w/Δt)        best at about Δt* = √(2·w·MTTF)

(Kokolis et al., Revisiting Reliability in Large-Scale Machine Learning Research Clusters, HPCA 2025, arXiv 2410.21680;
Young, CACM 17(9), 1974; Daly, FGCS 22(3), 2006). It counts failures alone: no start-up, no preemptions, no waits.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

NOTICED = 0.005
"""Of ETTR: less is no reason to change anything."""
UNSEEN = -math.log(0.05)
"""Mean failures of a time in which none would be seen with a probability of 5 %: the rule of three."""


@dataclass(frozen=True)
class Advice:
    """What was measured, in seconds, and what follows. None: not measured, or it does not follow."""

    up_s: float
    """Attempts' spans together."""
    failures: int
    preemptions: int
    save_s: float | None
    """That one save holds up training."""
    restart_s: float | None
    """Mean of restarts after a failure: from its last progress to the next attempt's first step, warm-up included."""
    step_s: float | None
    """Mean, with what it logs."""
    interval_s: float | None
    """Of steps for each save."""
    mttf_s: float | None = None
    mttf_at_least_s: float | None = None
    """Without a failure: a smaller one would have shown with a probability of 95 %."""
    best_interval_s: float | None = None
    """With `mttf_at_least_s`: a shorter one saves too often."""
    expected_ettr: float | None = None
    """At the interval as it is."""
    expected_ettr_best: float | None = None

    @property
    def best_steps(self) -> int | None:
        """`best_interval_s` in steps, at least one."""
        return self._steps(self.best_interval_s)

    @property
    def sentence(self) -> str:
        """The same in plain words."""
        if self.save_s is None or self.interval_s is None:
            return "no save was seen: how often to save cannot be said (checkpoint.every=N saves on the way)"
        now = f"every {self._often(self.interval_s)}"
        costs = f"a save holds up training for {_seconds(self.save_s)}"
        if self.best_interval_s is None:
            return f"{costs}, {now}: too short to be seen in the books"
        best = self._often(self.best_interval_s)
        if self.mttf_s is None:
            assert self.mttf_at_least_s is not None
            least = _seconds(self.mttf_at_least_s)
            shown = f"no failure in {_seconds(self.up_s)}, so that one comes every {least} or less often (95 %)"
            return f"{shown}; {costs}, {now}: more often than every {best} costs more than it keeps"
        failed = f"a failure every {_seconds(self.mttf_s)} ({self.failures} seen)"
        if self.restart_s is None or self.expected_ettr is None or self.expected_ettr_best is None:
            return f"{failed}; {costs}: save every {best}; it was {now}"
        failed += f", a restart takes {_seconds(self.restart_s)}, {costs}"
        if not self.expected_ettr_best and not self.expected_ettr:
            return f"{failed}: a job that fails so often does not get on, however often it saves"
        if self.expected_ettr_best - self.expected_ettr < NOTICED:
            return f"{failed}: {now} is right (expected ETTR {self.expected_ettr:.1%})"
        gives = f"expected ETTR {self.expected_ettr_best:.1%}; {now}, as it was, gives {self.expected_ettr:.1%}"
        return f"{failed}: save every {best}: {gives}"

    def as_json(self) -> dict[str, Any]:
        """Plain values; what is None is absent."""
        values = asdict(self) | {"best_interval_steps": self.best_steps, "sentence": self.sentence}
        return {name: value for name, value in values.items() if value is not None}

    def _steps(self, seconds: float | None) -> int | None:
        return max(1, round(seconds / self.step_s)) if seconds is not None and self.step_s else None

    def _often(self, seconds: float) -> str:
        steps = self._steps(seconds)
        return _seconds(seconds) + (f" ({steps:,} step{'s' if steps > 1 else ''})" if steps else "")


def advise(
    up_s: float,
    failures: int,
    preemptions: int,
    save_s: float | None,
    restart_s: float | None,
    step_s: float | None,
    interval_s: float | None,
) -> Advice:
    """See Advice for the arguments."""
    mttf_s = up_s / failures if failures else None
    at_least_s = None if failures else up_s / UNSEEN
    rate_s = mttf_s or at_least_s
    best_s = math.sqrt(2 * save_s * rate_s) if save_s and rate_s else None
    if best_s is not None and step_s:
        best_s = max(best_s, step_s)  # no save comes before a step's end
    expected = expected_best = None
    if save_s is not None and restart_s is not None and mttf_s and interval_s and best_s:
        expected = expected_ettr(interval_s, save_s, restart_s, mttf_s)
        expected_best = expected_ettr(best_s, save_s, restart_s, mttf_s)
    return Advice(
        up_s,
        failures,
        preemptions,
        save_s,
        restart_s,
        step_s,
        interval_s,
        mttf_s,
        at_least_s,
        best_s,
        expected,
        expected_best,
    )


def expected_ettr(interval_s: float, save_s: float, restart_s: float, mttf_s: float) -> float:
    """At an interval; 0 where restarts and lost work leave nothing."""
    return max(0.0, 1 - (restart_s + interval_s / 2) / mttf_s) / (1 + save_s / interval_s)


def _seconds(s: float) -> str:
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if s >= 2 * unit:
            return f"{s / unit:.3g} {name}"
    return f"{s:.3g} s" if s >= 0.1 else f"{s * 1e3:.3g} ms"
