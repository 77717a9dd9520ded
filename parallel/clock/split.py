"""What a wait was for: the wire, a slower rank, or a pipeline's idle stage.

    rank 0   compute ●───── waits 310 ms ─────●           own − least = 300 ms: another rank was late
    rank 1   compute ●───── waits 305 ms ─────●           own − least = 295 ms
    rank 2   compute ───────────────── ● 10 ms ●          least: it came last, and waited for the wire alone

In a collective that ends for all at once the last to arrive waits only for the transfer. So the least wait of a group
is what the wire took, and what is above it is for whoever came last. A receive that waits is another matter: the stage
before has not got that far (a bubble). The ranks of a pipeline also end a step at different moments, and meet at the
sums over the world that close it: what is above the least there is the schedule's end, a bubble too.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from parallel.clock.phase_clock import Waited
from parallel.comm import Communicator
from parallel.comm_kind import CommKind


@dataclass
class SplitWaits:
    """A rank's waits of a window, in seconds."""

    exposed_s: dict[CommKind, float] = field(default_factory=lambda: dict.fromkeys(CommKind, 0.0))
    """For the wire."""
    sync_s: float = 0.0
    """For ranks that came later."""
    bubble_s: float = 0.0
    """For other stages of the pipeline."""


def split_waits(waits: Sequence[Waited], comm: Communicator, pipelined: bool) -> SplitWaits:
    """Compare this rank's `waits` with those of its groups; all ranks call it together.

    Ranks of a group wait for the same collectives in the same order: their n-th waits are of one collective.
    `pipelined`: whether the world has several pipeline stages.
    """
    split = SplitWaits()
    by_group: dict[ProcessGroup | None, list[Waited]] = {}
    for wait in waits:
        if wait.operation == "receive":
            split.bubble_s += wait.seconds
        elif wait.operation == "send":
            split.exposed_s[wait.kind] += wait.seconds
        else:
            by_group.setdefault(wait.group if wait.group is not dist.group.WORLD else None, []).append(wait)
    for group, least in _least_of_groups(by_group, comm).items():
        for wait, least_s in zip(by_group[group], least, strict=True):
            split.exposed_s[wait.kind] += least_s
            if pipelined and group is None:
                split.bubble_s += wait.seconds - least_s
            else:
                split.sync_s += wait.seconds - least_s
    return split


def _least_of_groups(
    by_group: Mapping[ProcessGroup | None, Sequence[Waited]], comm: Communicator
) -> dict[ProcessGroup | None, list[float]]:
    """The least of each collective's waits, by group.

    Where ranks of a group have not waited equally often their waits cannot be told apart, and each keeps its own: a
    metric is no reason to end a job.
    """
    counts = {group: torch.tensor([len(waits), -len(waits)]) for group, waits in by_group.items()}
    comm.all_reduce_on_host(counts, dist.ReduceOp.MIN)
    own = {group: torch.tensor([w.seconds for w in waits], dtype=torch.float64) for group, waits in by_group.items()}
    alike = {}
    for group, count in counts.items():
        fewest, most = count[0].item(), -count[1].item()
        if fewest == most:
            alike[group] = own[group]
        else:
            kinds = ", ".join(sorted({wait.kind.value for wait in by_group[group]}))
            logging.getLogger(__name__).warning(
                "time/*: ranks waited %d to %d times for %s in the same steps: sync_wait lacks these waits",
                fewest,
                most,
                kinds,
            )
    comm.all_reduce_on_host(alike, dist.ReduceOp.MIN)
    return {group: seconds.tolist() for group, seconds in own.items()}
