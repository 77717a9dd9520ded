"""Degrees of parallelism, checked against the world, and the groups of ranks that they make.

    dense weights    pp × dp_replicate × dp_shard × tp          outermost first: tp ranks are neighbours on a machine
    routed experts   pp × copies × efsdp × ep × etp             the same ranks, folded once more

Experts need not lie as the rest of the model does (parallel folding, Liu et al. 2025): inside a pipeline stage the
ranks of dp_shard and tp together, or without dp_shard those of dp_replicate and tp, are dealt out again as
efsdp × ep × etp. So a rank may hold a part of every attention matrix and all of some experts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from models.config import ConfigError
from parallel.config import Reduction, StrategyConfig
from parallel.pipeline.schedules import ScheduleName

IGNORED = {
    Reduction.none: ("dp_replicate", "dp_shard"),
    Reduction.all_reduce: ("dp_shard",),
    Reduction.shard: (),
    Reduction.shard_optimizer: ("dp_shard",),
    Reduction.shard_gradients: ("dp_shard",),
}
"""Degrees that a reduction has no use for."""
DENSE = ("pp", "dp_replicate", "dp_shard", "tp")


@dataclass(frozen=True)
class Degrees:
    """How many ranks each dimension has; the product of the dense ones is the world."""

    pp: int
    dp_replicate: int
    dp_shard: int
    tp: int
    ep: int
    etp: int
    efsdp: int
    """Ranks that share one copy of an expert's parameters (FSDP2)."""
    paired: bool
    """Pipeline ranks r and pp - 1 - r hold the same stages, as in DualPipe."""

    @property
    def dp(self) -> int:
        """Ranks that see different data."""
        return self.dp_replicate * self.dp_shard

    @property
    def world(self) -> int:
        """All ranks."""
        return self.pp * self.dp * self.tp

    @property
    def expert_copies(self) -> int:
        """Ranks of a pipeline stage that hold the same part of the same experts."""
        return self.dp * self.tp // (self.efsdp * self.ep * self.etp)

    @classmethod
    def resolve(cls, strategy: StrategyConfig, world_size: int) -> "Degrees":
        """Fill in the -1s and check that the degrees span the world.

        Raises:
            ConfigError: naming the number to change.
        """
        degrees = {name: getattr(strategy, name) for name in DENSE}
        for name, degree in degrees.items() | {("ep", strategy.ep)}:
            if degree < 1 and degree != -1:
                raise ConfigError(f"strategy.{name}={degree}: set it to at least 1, or -1 for the rest of the world")
        for name in IGNORED[strategy.reduction]:
            if degrees[name] != 1:
                raise ConfigError(
                    f"strategy.{name}={degrees[name]}: strategy.reduction={strategy.reduction.value} has no such "
                    "ranks; set it to 1, or choose another strategy"
                )
        open_names = [name for name, degree in degrees.items() if degree == -1]
        if len(open_names) > 1:
            raise ConfigError(
                f"strategy.{open_names[0]} and strategy.{open_names[1]} are both -1, the rest of the world: "
                "set one of them to a number of ranks"
            )
        fixed = math.prod(degree for degree in degrees.values() if degree != -1)
        if open_names and world_size % fixed == 0:
            degrees[open_names[0]] = world_size // fixed
        elif open_names or fixed != world_size:
            raise ConfigError(_wrong_world(strategy, degrees, fixed, world_size))
        sharded = strategy.reduction is Reduction.shard
        inner = degrees["tp"] * degrees["dp_shard" if sharded else "dp_replicate"]
        if strategy.etp < 1:
            raise ConfigError(f"strategy.etp={strategy.etp}: set it to 1, or to strategy.tp")
        if strategy.etp not in (1, degrees["tp"]):
            raise ConfigError(
                f"strategy.etp={strategy.etp}: experts are split over all tensor-parallel ranks or none; "
                + (f"set it to {degrees['tp']} (strategy.tp) or 1" if degrees["tp"] > 1 else "set it to 1")
            )
        ep = inner // strategy.etp if strategy.ep == -1 else strategy.ep
        if inner % (ep * strategy.etp):
            raise ConfigError(
                f"strategy.ep={ep} does not divide the {inner // strategy.etp} ranks that it may take "
                f"(strategy.{'dp_shard' if sharded else 'dp_replicate'} × strategy.tp"
                f"{' ÷ strategy.etp' if strategy.etp > 1 else ''}): set it to a divisor, or -1 for all"
            )
        efsdp = inner // (ep * strategy.etp) if sharded else 1
        paired = degrees["pp"] > 1 and strategy.schedule is ScheduleName.dualpipe
        return cls(**degrees, ep=ep, etp=strategy.etp, efsdp=efsdp, paired=paired)


@dataclass(frozen=True)
class Axis:
    """This rank's group along one dimension of a grid, or along several laid end to end."""

    group: ProcessGroup
    rank: int
    """Of this process in the group."""
    size: int


class Grid:
    """The ranks of the world in a row of dimensions, outermost first; gives the groups along any of them.

    A group is made once for each division of the world, and by all ranks together: all must ask, in one order.
    """

    def __init__(self, ranks: Tensor, names: tuple[str, ...], rank: int, known: dict[str, ProcessGroup]) -> None:
        self._ranks, self._names, self._rank, self._known = ranks, names, rank, known

    def axis(self, *names: str, apart_from: Sequence[Axis] = ()) -> Axis:
        """This rank's group: those that differ from it in the dimensions `names` alone.

        A communicator does one thing after another. Where the group would be one of `apart_from`, which are to work at
        the same time, it is another one of the same ranks.
        """
        rows = self._rows(names)
        (mine,) = (row for row in rows if self._rank in row)
        group = self._group(rows, "")
        if len(mine) > 1 and any(group is other.group for other in apart_from):
            group = self._group(rows, "apart")
        return Axis(group, mine.index(self._rank), len(mine))

    def _group(self, rows: list[list[int]], which: str) -> ProcessGroup:
        # By the division of the whole world, not by my row of it: that could be the same in another division, and the
        # others would then make a group without me.
        division = f"{sorted(rows)} {which}"
        if division not in self._known:
            if len(rows) == 1 and not which:
                assert dist.group.WORLD is not None
                self._known[division] = dist.group.WORLD
            else:
                self._known[division] = dist.new_subgroups_by_enumeration(rows)[0]
        return self._known[division]

    def mesh(self, names: tuple[str, ...], device_type: str, apart_from: Sequence[Axis] = ()) -> DeviceMesh:
        """The DeviceMesh over the same groups, one dimension for each name: what FSDP2 asks for."""
        groups = [self.axis(name, apart_from=apart_from).group for name in names]
        if len(groups) == 1:
            return DeviceMesh.from_group(groups[0], device_type, mesh_dim_names=names)
        (mine,) = (row for row in self._rows(names) if self._rank in row)
        sizes = [self._ranks.shape[self._names.index(name)] for name in names]
        return DeviceMesh.from_group(groups, device_type, mesh=torch.tensor(mine).view(sizes), mesh_dim_names=names)

    def _rows(self, names: tuple[str, ...]) -> list[list[int]]:
        dims = sorted(self._names.index(name) for name in names)
        others = [dim for dim in range(self._ranks.dim()) if dim not in dims]
        n_members = math.prod(self._ranks.shape[dim] for dim in dims)
        rows: list[list[int]] = self._ranks.permute(*others, *dims).reshape(-1, n_members).tolist()
        return [sorted(row) for row in rows]  # as torch numbers a group's members


@dataclass(frozen=True)
class Layout:
    """Where this rank stands in both foldings of the world.

    `pp` appears cut in two: `pipe`, which stages a rank has, and `mirror`, the two ranks that have the same (DualPipe;
    else 1).
    """

    degrees: Degrees
    dense: Grid
    """pipe, mirror, dp_replicate, dp_shard, tp."""
    experts: Grid
    """pipe, mirror, copies, efsdp, ep, etp."""
    pp_rank: int

    @property
    def activations(self) -> tuple[Axis, ...]:
        """The groups in which compute waits for activations: gradients and parameters travel apart from them, or a
        small message would stand behind a large one that nobody waits for yet."""
        return self.dense.axis("tp"), self.experts.axis("ep"), self.dense.axis("pipe", "mirror")

    @classmethod
    def over_world(cls, degrees: Degrees, rank: int) -> "Layout":
        """Needs the default process group; called by all ranks together."""
        d = degrees
        ranks = torch.arange(d.world).view(d.pp, -1)
        # Paired: rank r of the pipeline beside rank pp - 1 - r.
        ranks = torch.stack((ranks, ranks.flip(0)), dim=1)[: d.pp // 2] if d.paired else ranks.unsqueeze(1)
        known: dict[str, ProcessGroup] = {}
        dense = ranks.unflatten(2, (d.dp_replicate, d.dp_shard, d.tp))
        experts = ranks.unflatten(2, (d.expert_copies, d.efsdp, d.ep, d.etp))
        return cls(
            degrees=d,
            dense=Grid(dense, ("pipe", "mirror", "dp_replicate", "dp_shard", "tp"), rank, known),
            experts=Grid(experts, ("pipe", "mirror", "copies", "efsdp", "ep", "etp"), rank, known),
            pp_rank=rank // (d.dp * d.tp),
        )


def _wrong_world(strategy: StrategyConfig, degrees: dict[str, int], fixed: int, world_size: int) -> str:
    were_started = f"and {world_size} {'was' if world_size == 1 else 'were'} started"
    if strategy.reduction is Reduction.none and fixed == 1 and -1 not in degrees.values():
        return f"strategy={strategy.name} is 1 rank, {were_started}: choose strategy=ddp or strategy=fsdp, or start 1"
    product = " × ".join(f"strategy.{name}={degree}" for name, degree in degrees.items() if degree not in (1, -1))
    if -1 in degrees.values():
        it = "it" if "×" not in product else "them"
        return f"{product} takes a multiple of {fixed} ranks, {were_started}: set {it} to divide {world_size}"
    free = [name for name in DENSE if name not in IGNORED[strategy.reduction]]
    # The widest; of equals the data-parallel ones, which any model can have.
    widest = max(free, key=lambda name: (degrees[name], name.startswith("dp"), name))
    return (
        f"strategy.{widest}={degrees[widest]} makes the degrees span {fixed} rank{'s' * (fixed > 1)}, {were_started}: "
        f"set it to -1 (the rest of the world), or start {fixed}"
    )
