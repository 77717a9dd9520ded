"""One layout's steps beside one process's, tensor by tensor, and what a difference looks like.

The first tensor that differs says most: later ones are its consequences. Its norm says how: a gradient that was reduced
twice is too large by just that factor and points the same way; one that lacks a part of its sum does not.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isclose, isfinite

import numpy as np

from launch.verify.trial import WholeStep


@dataclass(frozen=True)
class Bounds:
    """How far two runs of the same arithmetic may be apart, relative."""

    number: float
    """Losses and gradient norms."""
    gradient: float
    """‖difference‖ ÷ ‖reference‖ of each gradient, of the first step."""
    later: float
    """The same of later steps' gradients."""
    weight: float
    """The same of weights after an update."""
    floor: float
    """A norm below this part of the largest tensor's is counted as that: a gradient that is zero but for rounding (a
    key's bias has one, softmax does not see it) would be compared with itself."""


FLOAT64 = Bounds(number=1e-11, gradient=1e-10, later=1e-10, weight=1e-10, floor=1e-5)
FLOAT32 = Bounds(number=1e-5, gradient=1e-6, later=2e-5, weight=1e-5, floor=1e-1)
"""For engines without float64. Right ones were seen ten times below the bounds of later gradients and of weights."""


@dataclass(frozen=True)
class StepDifference:
    """How far one step is from the reference: the worst of each kind, relative."""

    loss: float
    grad_norm: float
    gradient: float
    gradient_name: str
    weight: float
    weight_name: str
    counts_equal: bool


@dataclass
class Comparison:
    """All steps, and the first thing that is beyond its bound, in words."""

    steps: list[StepDifference] = field(default_factory=list)
    first: str | None = None

    @property
    def equal(self) -> bool:
        return self.first is None


def compare(
    ours: Sequence[WholeStep], reference: Sequence[WholeStep], bounds: Bounds, groups: Mapping[str, int]
) -> Comparison:
    """`ours` beside `reference`; `groups`: sizes of what a sum can go wrong over, by a user's names."""
    comparison = Comparison()
    for number, (a, b) in enumerate(zip(ours, reference, strict=True), start=1):
        for said in _beyond(a, b, bounds, groups, first_step=number == 1):
            comparison.first = comparison.first or f"step {number}: {said}"
        gradients = _differences(a.gradients, b.gradients, bounds.floor)
        weights = _differences(a.weights, b.weights, bounds.floor)
        gradient_name = max(gradients, key=gradients.__getitem__)
        weight_name = max(weights, key=weights.__getitem__)
        comparison.steps.append(
            StepDifference(
                _relative(a.loss, b.loss),
                _relative(a.grad_norm, b.grad_norm),
                gradients[gradient_name],
                gradient_name.removeprefix("gradient."),
                weights[weight_name],
                weight_name.removeprefix("model."),
                bool((a.chosen_LE == b.chosen_LE).all()),
            )
        )
    return comparison


def _beyond(
    ours: WholeStep, reference: WholeStep, bounds: Bounds, groups: Mapping[str, int], first_step: bool
) -> Iterator[str]:
    """What is out of its bound, in the order of a step."""
    if ours.chosen_LE.shape != reference.chosen_LE.shape or (ours.chosen_LE != reference.chosen_LE).any():
        yield "tokens went to other experts: counts of (token, expert) pairs differ" + _where(ours, reference)
    if (ours.dropped_LE != reference.dropped_LE).any():
        here, there = ours.dropped_LE.sum(), reference.dropped_LE.sum()
        yield f"{here:g} pairs were dropped for want of capacity, and {there:g} in one process"
    for name in ("loss", "router_loss"):
        yield from _number(name, getattr(ours, name), getattr(reference, name), bounds, groups)
    bound = bounds.gradient if first_step else bounds.later
    yield from _tensors("gradient", ours.gradients, reference.gradients, bound, bounds.floor, groups)
    yield from _number("grad_norm", ours.grad_norm, reference.grad_norm, bounds, groups)
    yield from _tensors("updated weight", ours.weights, reference.weights, bounds.weight, bounds.floor, groups)
    if ours.eval_loss is not None and reference.eval_loss is not None:
        yield from _number("held-out loss", ours.eval_loss, reference.eval_loss, bounds, groups)


def _number(name: str, ours: float, reference: float, bounds: Bounds, groups: Mapping[str, int]) -> Iterator[str]:
    if not _relative(ours, reference) <= bounds.number:
        ratio = ours / reference if reference else float("inf")
        yield f"{name} is {ours:.12g}, and {reference:.12g} in one process{_factor(ratio, groups)}"


def _tensors(
    kind: str,
    ours: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
    bound: float,
    floor: float,
    groups: Mapping[str, int],
) -> Iterator[str]:
    for name in sorted(ours.keys() ^ reference.keys()):
        yield f"{kind} {name} is only {'here' if name in ours else 'in one process'}"
    distances = _differences(ours, reference, floor)
    for name, whole in reference.items():
        if name in ours and not distances[name] <= bound:
            yield f"{kind} {name} differs: {describe(ours[name], whole, groups)}"


def describe(ours: np.ndarray, reference: np.ndarray, groups: Mapping[str, int]) -> str:
    """In what way a tensor is not the reference."""
    if not np.isfinite(ours).all():
        return f"{(~np.isfinite(ours)).sum()} of its {ours.size} elements are not finite"
    norm, expected = np.linalg.norm(ours), np.linalg.norm(reference)
    if expected == 0:
        return f"norm {norm:.3g}, and 0 in one process"
    ratio = float(norm / expected)
    said = f"norm ratio {ratio:.6g}, ‖difference‖ {np.linalg.norm(ours - reference) / expected:.2g} of its norm"
    cosine = float((ours * reference).sum() / (norm * expected)) if norm else 0.0
    if norm == 0:
        return said + "; it is zero: nothing arrived, or it was cleared"
    if isclose(cosine, 1.0, abs_tol=1e-9):
        return said + _factor(ratio, groups)
    if isclose(cosine, -1.0, abs_tol=1e-9):
        return said + "; the same but for its sign"
    return said + f"; it points elsewhere (cosine {cosine:.4f}): a part of a sum is missing or is another's"


def _factor(ratio: float, groups: Mapping[str, int]) -> str:
    """What a constant factor says: a group's size, or its inverse."""
    if not isfinite(ratio) or ratio <= 0 or isclose(ratio, 1.0, rel_tol=1e-6):
        return ""
    for factor, words in ((ratio, "reduced twice, or not averaged, over"), (1 / ratio, "averaged once too often over")):
        fits = [f"{name} ({n})" for name, n in groups.items() if n > 1 and isclose(factor, n, rel_tol=1e-6)]
        if fits:
            return f"; the same but for a factor of {ratio:.6g}: {words} {' or '.join(fits)}"
    if isclose(ratio, 2.0, rel_tol=1e-6):
        return "; the same but for a factor of 2: reduced twice"
    if isclose(ratio, 0.5, rel_tol=1e-6):
        return "; the same but for a factor of 1/2: divided twice"
    return f"; the same but for a factor of {ratio:.6g}"


def _where(ours: WholeStep, reference: WholeStep) -> str:
    if ours.chosen_LE.shape != reference.chosen_LE.shape:
        return ""
    layer, expert = np.argwhere(ours.chosen_LE != reference.chosen_LE)[0]
    here, there = ours.chosen_LE[layer, expert], reference.chosen_LE[layer, expert]
    return f" first in MoE layer {layer}, expert {expert}: {here:g}, and {there:g} in one process"


def _differences(ours: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray], floor: float) -> dict[str, float]:
    """‖ours - reference‖ ÷ ‖reference‖ of each tensor; infinity where ours is not there."""
    norms = {name: float(np.linalg.norm(whole)) for name, whole in reference.items()}
    least = floor * max(norms.values()) or 1.0
    return {
        name: float(np.linalg.norm(ours[name] - whole)) / max(norms[name], least) if name in ours else float("inf")
        for name, whole in reference.items()
    }


def _relative(ours: float, reference: float) -> float:
    return abs(ours - reference) / max(abs(reference), 1e-300) if ours != reference else 0.0
