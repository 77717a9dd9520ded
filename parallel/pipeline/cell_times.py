"""What a rank's share of the model takes of one micro-batch, and what a schedule's cells take then, alone and paired.

A pair walks the layers of a forward (F) and a backward (B) in the order that DeepSeek's trace, Megatron and PithTrain
share. On paper it has two streams, each of which keeps its order; an operation starts when its stream is free and what
it needs is there:

    compute         attention(F)   experts(B)    experts(F)    attention(B)
    exchange        combine(B)     dispatch(F)   dispatch(B)   combine(F)

    dispatch(F)    after attention(F)          experts(B)     after combine(B)
    experts(F)     after dispatch(F)           dispatch(B)    after experts(B)
    combine(F)     after experts(F)            attention(B)   after dispatch(B)

Weights' gradients are made with those of inputs (DeepSeek puts the experts' off, behind dispatch(B)). The next layer's
attention(F) needs combine(F), and its combine(B) attention(B): whichever is last, both streams go on from there. So a
pair takes as long whatever the number of layers that a share is cut into.
"""

from dataclasses import dataclass, replace

from parallel.pipeline.action import Cell
from parallel.pipeline.simulator import Costs


@dataclass(frozen=True)
class CellTimes:
    """Of one rank's share of the model and one micro-batch, in any unit."""

    forward: float = 1.0
    """Compute alone, as are the next two."""
    input: float = 1.0
    """Gradients of inputs."""
    weight: float = 1.0
    """Gradients of weights; a whole backward is both."""
    all_to_all: float = 0.5
    """Dispatch and combine together, of a forward; of a backward as much again."""
    send: float = 0.0
    """A message between pipeline ranks, whatever its stage's size."""
    attention: float = 0.5
    """The part of compute that is before dispatch; experts, shared ones too, are the rest."""

    @property
    def compute(self) -> float:
        """Of forward and backward."""
        return self.forward + self.input + self.weight

    def scaled(self, factor: float) -> "CellTimes":
        """For a share, or a micro-batch, of `factor` times the size."""
        times = {name: getattr(self, name) * factor for name in ("forward", "input", "weight", "all_to_all")}
        return replace(self, **times)

    def pair(self) -> float:
        """A forward beside a backward."""
        before, after, travel = self.attention, 1 - self.attention, self.all_to_all / 2
        backward = self.input + self.weight
        attended_f, combined_b = self.forward * before, travel
        expert_b = max(attended_f, combined_b) + backward * after
        dispatched_f = max(combined_b, attended_f) + travel
        dispatched_b = max(dispatched_f, expert_b) + travel
        expert_f = max(expert_b, dispatched_f) + self.forward * after
        combined_f = max(dispatched_b, expert_f) + travel
        attended_b = max(expert_f, dispatched_b) + backward * before
        return max(combined_f, attended_b)

    def costs(self, paired: bool) -> Costs:
        """Of a schedule's cells, where a stage is this share; a schedule's pairs hide nothing unless `paired`."""
        pair = self.pair() if paired else None
        return Costs(self.forward + self.all_to_all, self.input + self.all_to_all, self.weight, pair, self.send)

    def exposed(self, costs: Costs, cell: Cell) -> float:
        """All-to-all in `cell` that no compute hides, of these `costs`."""
        return costs.of(cell) - Costs(self.forward, self.input, self.weight, shares=costs.shares).of(cell)
