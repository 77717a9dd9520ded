"""The weights of a stage, as each of its ranks has them: who holds the same, and what is gathered together."""

import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from models.config import AttentionKind, ModelConfig
from models.parameter_shapes import Shape, parameter_shapes
from parallel.mesh import Degrees

CUT_IN_ROWS = ("mixer.query", "mixer.query_up", "mixer.kv_up", "shared.gate", "shared.up", "embedding", "head")
CUT_IN_COLUMNS = ("mixer.output", "shared.down")


@dataclass(frozen=True)
class Weight:
    """One parameter."""

    name: str
    shape: Shape
    """After tensor and expert parallelism, before any sharding."""
    n_shards: int
    """Ranks that FSDP2 shares it out over; 1 without FSDP2."""
    n_replicas: int
    """Ranks of data parallelism that hold the same shard."""
    n_mirrors: int
    """Ranks beyond these that hold the same: DualPipe's pairs, and tensor-parallel ranks that have it whole."""

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def n_copies(self) -> int:
        """Ranks over which its gradient is summed, by whatever means."""
        return self.n_shards * self.n_replicas * self.n_mirrors

    def padded_part(self, n_ranks: int) -> int:
        """Elements of a rank's part, if rows are shared out over `n_ranks` and the last ranks' filled up."""
        return -(-self.shape[0] // n_ranks) * (self.numel // self.shape[0])


@dataclass(frozen=True)
class Part:
    """What FSDP2 gathers at a time."""

    weights: Sequence[Weight]
    reshard: bool
    """Whether it is freed after forward."""

    @property
    def n_shards(self) -> int:
        """Ranks that share it out."""
        return self.weights[0].n_shards

    @property
    def n_replicas(self) -> int:
        """Ranks that hold the same shards."""
        return self.weights[0].n_replicas

    @property
    def shard_numel(self) -> int:
        """Elements of a rank's shards, filled up."""
        return sum(weight.padded_part(self.n_shards) for weight in self.weights)


def weights_of(model: ModelConfig, degrees: Degrees, layers: range) -> Iterator[Weight]:
    """Of a stage, in the order of forward."""
    pair = 2 if degrees.paired else 1
    for name, shape in parameter_shapes(model, layers).items():
        sizes = list(shape)
        dim = _cut_dim(name, model, degrees)
        if dim is not None:
            sizes[dim] //= degrees.tp
        if ".routed." in name:
            sizes[0] //= degrees.ep
            yield Weight(name, tuple(sizes), degrees.efsdp, degrees.expert_copies, pair)
        else:
            beyond = pair if dim is not None else pair * degrees.tp
            yield Weight(name, tuple(sizes), degrees.dp_shard, degrees.dp_replicate, beyond)


def fsdp_parts(weights: Sequence[Weight], degrees: Degrees, reshard_after_forward: bool) -> list[Part]:
    """In the order of forward."""
    apart = degrees.tp * degrees.ep > 1  # then routed experts are sharded over other ranks than what stands beside them
    grouped: dict[tuple[int, int], list[Weight]] = defaultdict(list)
    for weight in weights:
        grouped[_place(weight.name, apart)].append(weight)
    # The last part's backward follows its forward at once: it stays.
    return [
        Part(grouped[place], reshard_after_forward and (place[1] == ROUTED or place != max(grouped)))
        for place in sorted(grouped)
    ]


ATTENTION, ROUTED, EXPERTS = range(3)


def _place(name: str, apart: bool) -> tuple[int, int]:
    """(layer, part of it) that a parameter is gathered with. The embedding comes before all layers, norm and head after
    them."""
    if not name.startswith("layers."):
        return (-1, ATTENTION) if name.startswith("embedding") else (sys.maxsize, ATTENTION)
    _, number, part, *_ = name.split(".")
    if part == "attention":
        return int(number), ATTENTION
    return int(number), ROUTED if apart and ".routed." in name else EXPERTS


def _cut_dim(name: str, model: ModelConfig, degrees: Degrees) -> int | None:
    """Along which dimension tensor-parallel ranks share a parameter out; None: each has all of it."""
    if degrees.tp == 1:
        return None
    if ".routed." in name:
        return None if degrees.etp == 1 else 2
    module, _, leaf = name.rpartition(".")
    a = model.attention
    if a.kind is AttentionKind.gqa and module.endswith(("mixer.key", "mixer.value")):
        return 0 if a.n_kv_heads % degrees.tp == 0 else None
    if module.endswith(CUT_IN_ROWS):
        return 0
    return 1 if module.endswith(CUT_IN_COLUMNS) and leaf == "weight" else None
