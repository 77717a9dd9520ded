"""Degrees of parallelism, checked against the world, and the device mesh that they span.

dp_replicate × dp_shard          outermost first; neighbours in dp_shard are neighbours on the machine
"""

import math
from dataclasses import dataclass

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from models.config import ConfigError
from parallel.config import Reduction, StrategyConfig

IGNORED = {Reduction.none: ("dp_replicate", "dp_shard"), Reduction.all_reduce: ("dp_shard",), Reduction.shard: ()}
"""Degrees that a reduction has no use for."""


@dataclass(frozen=True)
class Degrees:
    """How many ranks each dimension has; their product is the world."""

    dp_replicate: int
    dp_shard: int

    @property
    def dp(self) -> int:
        """Ranks that see different data."""
        return self.dp_replicate * self.dp_shard

    @classmethod
    def resolve(cls, strategy: StrategyConfig, world_size: int) -> "Degrees":
        """Fill in the -1 and check that the degrees span the world.

        Raises:
            ConfigError: naming the number to change.
        """
        degrees = {"dp_replicate": strategy.dp_replicate, "dp_shard": strategy.dp_shard}
        for name, degree in degrees.items():
            if degree < 1 and degree != -1:
                raise ConfigError(f"strategy.{name}={degree}: set it to at least 1, or -1 for the rest of the world")
            if degree != 1 and name in IGNORED[strategy.reduction]:
                raise ConfigError(
                    f"strategy.{name}={degree}: strategy.reduction={strategy.reduction.value} has no such ranks; "
                    "set it to 1, or choose another strategy"
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
        return cls(**degrees)


def build_mesh(degrees: Degrees, device_type: str) -> DeviceMesh:
    """The mesh (dp_replicate, dp_shard) over the whole world, for cpu or cuda."""
    return init_device_mesh(
        device_type, (degrees.dp_replicate, degrees.dp_shard), mesh_dim_names=("dp_replicate", "dp_shard")
    )


def _wrong_world(strategy: StrategyConfig, degrees: dict[str, int], fixed: int, world_size: int) -> str:
    were_started = f"and {world_size} {'was' if world_size == 1 else 'were'} started"
    if strategy.reduction is Reduction.none:
        return f"strategy={strategy.name} is 1 rank, {were_started}: choose strategy=ddp or strategy=fsdp, or start 1"
    product = " × ".join(f"strategy.{name}={degree}" for name, degree in degrees.items() if degree not in (1, -1))
    if -1 in degrees.values():
        return f"{product} takes a multiple of {fixed} ranks, {were_started}: set it to a divisor of {world_size}"
    free = [name for name in reversed(degrees) if name not in IGNORED[strategy.reduction]]
    widest = max(free, key=lambda name: degrees[name])
    return (
        f"strategy.{widest}={degrees[widest]} makes the degrees span {fixed} rank{'s' * (fixed > 1)}, {were_started}: "
        f"set it to -1 (the rest of the world), or start {fixed}"
    )
