"""One optimizer step of a layout with what it said between ranks, in the calling rank, beside the prediction."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from harness.layout_run import Layout, lay_out

from parallel.comm import Communicator
from parallel.engine import NativeEngine
from parallel.mesh import Degrees
from parallel.owned import masters
from parallel.traffic.meter import TrafficMeter
from parallel.traffic.predict import predict_traffic
from parallel.traffic.step_shape import StepShape
from parallel.traffic.tally import Traffic
from parallel.world import World
from train.config import OptimConfig, TrainConfig
from train.optimizer import build_optimizer
from train.step import OptimizerStep


class Measured(NamedTuple):
    """Of one rank."""

    traffic: Traffic
    n_dropped: int
    """Pairs beyond capacity, of all ranks."""


def measure_step(layout: Layout, n_before: int = 1) -> Measured:
    """The step after `n_before` others, over the running process group."""
    world = World(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    comm = Communicator()
    parallel, train = lay_out(layout, world, comm)
    optimizer = build_optimizer(masters(parallel.owned), OptimConfig())
    engine = NativeEngine(parallel, optimizer, comm, layout.precision.compute.torch)
    step = OptimizerStep(engine, comm, parallel.data, layout.batching, train.global_batch_size, clip_norm=1.0)
    shape = step_shape(layout, world.size)
    generator = torch.Generator().manual_seed(parallel.data.rank)
    size = (shape.n_micro_batches, shape.micro_batch_size, shape.sequence_length + 1)
    for _ in range(n_before):
        step(torch.randint(layout.model.vocab_size, size, generator=generator), rate=1e-2)
    with TrafficMeter(comm) as meter:
        result = step(torch.randint(layout.model.vocab_size, size, generator=generator), rate=1e-2)
    return Measured(meter.traffic, int(result.counts.dropped_LE.sum()))


def predict_step(layout: Layout, world_size: int, n_dropped: int = 0) -> Traffic:
    """What the config says of it."""
    return predict_traffic(
        layout.model,
        layout.strategy,
        layout.overlap,
        layout.precision,
        Degrees.resolve(layout.strategy, world_size),
        step_shape(layout, world_size, n_dropped),
    )


def step_shape(layout: Layout, world_size: int, n_dropped: int = 0) -> StepShape:
    """Of each rank."""
    degrees = Degrees.resolve(layout.strategy, world_size)
    train = TrainConfig(global_batch_size=layout.global_batch_size, micro_batch_size=layout.micro_batch_size)
    return StepShape(
        n_micro_batches=train.micro_batches(degrees.dp, degrees.pp),
        micro_batch_size=train.micro_batch(degrees.dp, degrees.pp),
        sequence_length=layout.model.max_sequence_length,
        counts_targets=layout.batching.separator is not None,
        n_dropped=n_dropped,
    )
