"""Whether runs learnt the same: the loss of each beside that of the first, step by step."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite, isinf

from launch.loss_difference import loss_difference
from launch.report.run_view import RunView
from train.run_folder import identity

LOSS = "train/loss"
ROUNDING = 1e-4
"""Relative: what another order of sums in float32 may come to in some hundred steps. More is flagged."""


@dataclass(frozen=True)
class LossDifference:
    """One run beside the first."""

    label: str
    other_job: list[str]
    """Keys by which it is not the same job (another model, data, seed, …): then losses are not compared."""
    n_steps: int
    """That both have logged."""
    largest: float
    """|Δloss|, nats a token; infinite where one alone is not finite."""
    at_step: int
    relative: float
    """Of the first one's loss in that step."""

    @property
    def flagged(self) -> bool:
        """Whether the difference is more than rounding."""
        return not self.other_job and self.relative > ROUNDING

    @property
    def sentence(self) -> str:
        """The finding."""
        if self.other_job:
            return f"another job ({', '.join(self.other_job)}): not compared"
        if not self.n_steps:
            return "no step in common"
        if not self.largest:
            return f"equal in all {self.n_steps:,} steps"
        if isinf(self.largest):
            return f"differs: one alone is not finite, in step {self.at_step:,}"
        where = f"at most {self.largest:.2g} apart ({self.relative:.1g} of the loss), in step {self.at_step:,}"
        return f"differs: {where}" if self.flagged else f"equal to rounding: {where}"


def compare_losses(runs: Sequence[RunView]) -> list[LossDifference]:
    """Each run but the first beside the first."""
    first = runs[0]
    losses, job = _losses(first), identity(first.settings)
    found = []
    for run in runs[1:]:
        theirs = identity(run.settings)
        differ = [key for key in sorted(job.keys() | theirs.keys()) if job.get(key) != theirs.get(key)]
        named = [key for key in differ if key.endswith(".name")] or differ
        pairs = [(loss_difference(loss, losses[step]), step) for step, loss in _losses(run).items() if step in losses]
        largest, step = max(pairs, key=lambda pair: pair[0], default=(0.0, 0))
        relative = _relative(largest, losses[step]) if largest else 0.0
        found.append(LossDifference(run.label, named[:3], len(pairs), largest, step, relative))
    return found


def _losses(run: RunView) -> dict[int, float]:
    """By step, also what is not finite."""
    return {row["train/step"]: row[LOSS] for row in run.rows if LOSS in row}


def _relative(difference: float, loss: float) -> float:
    return difference / abs(loss) if isfinite(difference) and loss else inf


def coinciding(curves: Sequence[list[tuple[int, float]]], within: float) -> list[list[int]]:
    """Which of `curves` (steps and values) are one but for a part `within` of each value: their indices, in groups."""
    groups: list[list[int]] = []
    for i, curve in enumerate(curves):
        mine = next((group for group in groups if _same(curves[group[0]], curve, within)), None)
        if mine is None:
            groups.append([i])
        else:
            mine.append(i)
    return groups


def _same(one: list[tuple[int, float]], other: list[tuple[int, float]], within: float) -> bool:
    return [step for step, _ in one] == [step for step, _ in other] and all(
        abs(a - b) <= within * abs(a) for (_, a), (_, b) in zip(one, other, strict=True)
    )
