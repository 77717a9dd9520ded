"""What a wait was for: the wire, a slower rank, or a pipeline's idle stage.

    rank 0   compute ●───── waits 310 ms ─────●           own − least = 300 ms: another rank was late
    rank 1   compute ●───── waits 305 ms ─────●           own − least = 295 ms
    rank 2   compute ───────────────── ● 10 ms ●          least: it came last, and waited for the wire alone

In a collective that ends for all at once the last to arrive waits only for the transfer. So the least wait of a group
is what the wire took, and what is above it is for the last rank, which is thereby known. A receive that waits is
another matter: the stage before has not got that far (a bubble). The ranks of a pipeline also end a step at different
moments, and meet at the sums over the world that close it: what is above the least there is the schedule's end, a
bubble too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor
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
    caused_s: float = 0.0
    """What the others of its groups waited for this rank, added up over them."""


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
    least, total = _over_groups(by_group, comm)
    for group, collective in by_group.items():
        size = dist.get_world_size() if group is None else group.size()
        for wait, least_s, total_s in zip(collective, least[group].tolist(), total[group].tolist(), strict=True):
            split.exposed_s[wait.kind] += least_s
            if pipelined and group is None:
                split.bubble_s += wait.seconds - least_s
                continue
            split.sync_s += wait.seconds - least_s
            if size > 1 and wait.seconds == least_s:
                split.caused_s += total_s - size * least_s
    return split


Vectors = dict[ProcessGroup | None, Tensor]


def _over_groups(by_group: dict[ProcessGroup | None, list[Waited]], comm: Communicator) -> tuple[Vectors, Vectors]:
    """The least of each collective's waits, and their sum, by group.

    Raises:
        RuntimeError: if ranks of a group have not waited equally often: their waits cannot be told apart.
    """
    counts: Vectors = {group: torch.tensor([len(waits), -len(waits)]) for group, waits in by_group.items()}
    comm.all_reduce_on_host(counts, dist.ReduceOp.MIN)
    for group, (fewest, most) in ((group, tensor.tolist()) for group, tensor in counts.items()):
        if fewest != -most:
            kinds = sorted({wait.kind.value for wait in by_group[group]})
            raise RuntimeError(f"ranks waited {fewest} to {-most} times for {', '.join(kinds)} in the same steps")
    least: Vectors = {
        group: torch.tensor([wait.seconds for wait in waits], dtype=torch.float64) for group, waits in by_group.items()
    }
    total: Vectors = {group: seconds.clone() for group, seconds in least.items()}
    comm.all_reduce_on_host(least, dist.ReduceOp.MIN)
    comm.all_reduce_on_host(total, dist.ReduceOp.SUM)
    return least, total
