"""What gradients and parameters cost a step: DDP's buckets, ZeRO-1's, FSDP2's parts, and the sums beyond its mesh.

A stage of a chain is on dp × tp ranks; what is counted is over all of them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain

from models.config import ModelConfig
from parallel.buckets import divide_into_buckets
from parallel.comm_kind import CommKind
from parallel.config import OverlapConfig, PrecisionConfig, Reduction, StrategyConfig
from parallel.mesh import Degrees
from parallel.pipeline.action import Op, Schedule, StageKey, actions_of
from parallel.traffic.tally import Channel, Traffic
from parallel.traffic.weights import Part, Weight, fsdp_parts, weights_of


def gradient_traffic(
    model: ModelConfig,
    strategy: StrategyConfig,
    overlap: OverlapConfig,
    precision: PrecisionConfig,
    degrees: Degrees,
    schedule: Schedule,
    layers: Sequence[range],
) -> Traffic:
    """Of a step, over all ranks; `layers` of each stage."""
    n_ranks = degrees.dp * degrees.tp
    weights = {
        StageKey(number, stage): list(weights_of(model, degrees, layers[stage]))
        for number, ranks in enumerate(schedule.rank_of_stage)
        for stage in range(len(ranks))
    }
    if strategy.reduction is Reduction.shard:
        parts = {key: fsdp_parts(some, degrees, overlap.reshard_after_forward) for key, some in weights.items()}
        gathered_once = schedule.splits_backward or overlap.forward_backward
        scattered_once = gathered_once or not overlap.grad_reduce
        of_stages = [
            _fully_sharded(parts[key], _ops(schedule, key), gathered_once, scattered_once, precision, n_ranks)
            for key in weights
        ]
        return Traffic.total([*of_stages, _beyond(list(chain(*weights.values())), precision, degrees)])
    of_stage = _zero1 if strategy.reduction is Reduction.shard_optimizer else _all_reduced
    bucket_bytes = int(overlap.bucket_mib * 2**20)
    return Traffic.total(of_stage(some, bucket_bytes, precision, n_ranks) for some in weights.values())


def _all_reduced(weights: Sequence[Weight], bucket_bytes: int, precision: PrecisionConfig, n_ranks: int) -> Traffic:
    """DDP, and sums over tensor-parallel ranks or pairs alone: an all-reduce for each bucket, once."""
    traffic, itemsize = Traffic(), precision.parameters.torch.itemsize
    for bucket in _buckets([w for w in weights if w.n_copies > 1], bucket_bytes, itemsize):
        n_bytes = sum(weight.numel for weight in bucket) * itemsize
        traffic.add(Channel(CommKind.dp, "all_reduce", bucket[0].n_copies), n_ranks, n_ranks * n_bytes)
    return traffic


def _zero1(weights: Sequence[Weight], bucket_bytes: int, precision: PrecisionConfig, n_ranks: int) -> Traffic:
    """Gradients scattered and masters gathered, each bucket once."""
    traffic, resident, reduced = Traffic(), precision.compute.torch.itemsize, precision.reduce.torch.itemsize
    for bucket in _buckets([w for w in weights if w.n_copies > 1], bucket_bytes, resident):
        n = bucket[0].n_copies
        part = sum(weight.padded_part(n) for weight in bucket)
        traffic.add(Channel(CommKind.dp, "reduce_scatter", n), n_ranks, n_ranks * n * part * reduced)
        traffic.add(Channel(CommKind.dp, "all_gather", n), n_ranks, n_ranks * part * resident)
    return traffic


def _buckets(weights: Sequence[Weight], bucket_bytes: int, itemsize: int) -> Iterator[list[Weight]]:
    """Last weights first. Of a stage's groups of ranks two that are equally large are the same."""
    backward = weights[::-1]
    sizes = [(weight.n_copies, weight.numel * itemsize) for weight in backward]
    for members in divide_into_buckets(sizes, bucket_bytes):
        yield [backward[i] for i in members]


def _fully_sharded(
    parts: Sequence[Part],
    ops: Sequence[Op],
    gathered_once: bool,
    scattered_once: bool,
    precision: PrecisionConfig,
    n_ranks: int,
) -> Traffic:
    """FSDP2 of one stage, of which a rank computes `ops` in this order; what is done once is once per step."""
    traffic = Traffic()
    wire, reduced = precision.compute.torch.itemsize, precision.reduce.torch.itemsize
    n_scatters = 1 if scattered_once else ops.count(Op.backward)
    for part, n_gathers in zip(parts, [1] * len(parts) if gathered_once else _count_gathers(parts, ops), strict=True):
        numel = n_ranks * part.shard_numel
        if part.n_shards > 1:
            gather = Channel(CommKind.fsdp, "all_gather", part.n_shards)
            traffic.add(gather, n_gathers * n_ranks, n_gathers * numel * wire)
            scatter = Channel(CommKind.fsdp, "reduce_scatter", part.n_shards)
            traffic.add(scatter, n_scatters * n_ranks, n_scatters * part.n_shards * numel * reduced)
        if part.n_replicas > 1:
            traffic.add(Channel(CommKind.fsdp, "all_reduce", part.n_replicas), n_ranks, numel * reduced)
    return traffic


def _count_gathers(parts: Sequence[Part], ops: Sequence[Op]) -> list[int]:
    """How often each part is gathered, where backward is not split: before any use that does not find it there."""
    n_gathers, there = [0] * len(parts), [False] * len(parts)
    for op in ops:
        for i, part in enumerate(parts):
            n_gathers[i] += not there[i]
            there[i] = op is Op.forward and not part.reshard
    return n_gathers


def _beyond(weights: Sequence[Weight], precision: PrecisionConfig, degrees: Degrees) -> Traffic:
    """Sums over ranks beyond FSDP2's mesh: of all stages of a rank in one call for each such group."""
    traffic, numel = Traffic(), Counter[int]()
    for weight in weights:
        # Shards add up to the weight, and are not filled up here.
        numel[weight.n_mirrors] += weight.numel * degrees.dp * degrees.tp // weight.n_shards
    for n_mirrors, elements in numel.items():
        if n_mirrors > 1:
            n_bytes = elements * precision.parameters.torch.itemsize
            traffic.add(Channel(CommKind.dp, "all_reduce", n_mirrors), degrees.world, n_bytes)
    return traffic


def _ops(schedule: Schedule, key: StageKey) -> list[Op]:
    """What the rank of a stage does with it, in order."""
    row = schedule.rows[schedule.rank_of_stage[key.chain][key.stage]]
    return [action.op for cell in row for action in actions_of(cell) if action.key == key]
