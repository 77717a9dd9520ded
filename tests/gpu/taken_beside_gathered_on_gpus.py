"""`torchrun … -m gpu.taken_beside_gathered_on_gpus`: strategy.dispatcher=symmetric_memory beside all_gather, by
layout: a line of JSON on rank 0 for each, of what ranks have farthest from each other's numbers, and what was said.

Whatever the allocator has free is filled with NaN before each exchange and each wait, and so are the places for others'
rows before they are taken: what was given away too early is spoilt, and rows that nobody wants are NaN.
"""

import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from gpu.side_by_side_on_gpus import WIDE, Poisoning, tell
from harness.layout_run import BF16, DDP, FP32, FP64, FSDP, ZERO1, Layout, batches_of, lay_out
from harness.predicted_traffic import predicted_traffic
from harness.spoilt_places import SpoiltPlaces

from launch.verify.pieces import pieces
from parallel import peer_memory
from parallel.comm import Communicator
from parallel.config import OverlapConfig, PrecisionConfig, Recompute
from parallel.engine import Engine
from parallel.expert_parallel.build import DispatcherName, RowRoom
from parallel.native_engine import NativeEngine
from parallel.parallelize import ParallelModel
from parallel.pipeline.schedules import ScheduleName
from parallel.traffic.meter import TrafficMeter
from parallel.traffic.tally import Traffic
from parallel.world import TIMEOUT, Launch, World
from train.config import OptimConfig
from train.optimizer import build_optimizer
from train.step import OptimizerStep

HIDDEN = OverlapConfig(shared_experts=True)
PRECISIONS = {"fp64": FP64, "fp32": FP32, "bf16": BF16}
STEPS = 6


def layouts(n_ranks: int) -> dict[str, Layout]:
    """Of 2 ranks, or of 4."""
    made = {
        "zero1_hidden": Layout(replace(ZERO1, ep=-1), HIDDEN, micro_batch_size=1),
        "ddp_recompute": Layout(replace(DDP, ep=2, recompute=Recompute.full), micro_batch_size=2),
        "fsdp": Layout(replace(FSDP, ep=2), HIDDEN),
    }
    if n_ranks == 4:
        split = replace(DDP, ep=2, pp=2, schedule=ScheduleName.zbv)
        made["pp"] = Layout(split, HIDDEN, model=replace(WIDE, n_layers=4))
        made["tp"] = Layout(replace(DDP, ep=4, tp=2))
    return {name: replace(one, model=WIDE if one.model.dim != WIDE.dim else one.model) for name, one in made.items()}


def run(
    layout: Layout, comm: Communicator, world: World, kept: list[ParallelModel]
) -> tuple[np.ndarray, dict[str, np.ndarray], Traffic, int]:
    """Losses, the first step's gradients of this rank, what was said in the last step, and how often the host waited
    for the GPU in it. `kept`: its model, since memory that was shared is not to be given back."""
    parallel, config = lay_out(layout, world, comm)
    kept.append(parallel)
    engine = NativeEngine(parallel, partial(build_optimizer, optim=OptimConfig()), comm, layout.precision.compute.torch)
    gradients: dict[str, np.ndarray] = {}

    def keep_first(engine: Engine) -> None:
        if not gradients:
            gradients.update({name: piece.array for name, piece in pieces(engine.gradients()).items()})

    step = OptimizerStep(engine, comm, layout.batching, config.global_batch_size, 1.0, before_update=keep_first)
    loader = batches_of(layout, engine.data, device=world.device)
    losses, traffic, n_waits = [], Traffic(), 0
    for number in range(STEPS):
        batches = next(loader)
        last = number == STEPS - 1
        if last:
            torch.cuda.set_sync_debug_mode("warn")
        with TrafficMeter(comm) as meter, warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            losses.append(step(batches, rate=layout.rate).loss)
        torch.cuda.set_sync_debug_mode("default")
        traffic = meter.traffic
        n_waits = sum("synchroniz" in str(one.message) for one in said)
    return np.array([loss.item() for loss in losses]), gradients, traffic, n_waits


def compare(name: str, layout: Layout, launch: Launch, world: World, kept: list[ParallelModel]) -> None:
    """Tell of one layout."""
    results = []
    for dispatcher in (DispatcherName.all_gather, DispatcherName.symmetric_memory):
        chosen = replace(layout, strategy=replace(layout.strategy, dispatcher=dispatcher))
        results.append(run(chosen, Poisoning(), world, kept))
    (losses, gradients, _, waits), (taken, taken_gradients, traffic, taken_waits) = results
    scale = max(np.abs(one).max() for one in gradients.values())
    off = np.max([np.abs(taken_gradients[key] - one).max() for key, one in gradients.items()])  # NaN, if one is
    of_all: list[tuple[Traffic, float, float]] = [(Traffic(), 0.0, 0.0)] * world.size
    dist.all_gather_object(of_all, (traffic, float(off / scale), float(np.abs(taken - losses).max())))
    predicted = predicted_traffic(chosen, world.size).rows()
    row = {
        "layout": name,
        "losses": taken.tolist(),
        "losses_off": float(np.max([each[2] for each in of_all])),
        "gradients_off": float(np.max([each[1] for each in of_all])),
        "as_predicted": Traffic.total(each[0] for each in of_all).rows() == predicted,
        "waits": [waits, taken_waits],
    }
    tell(launch, row)


def of_precision(layout: Layout, precision: PrecisionConfig) -> Layout:
    """Room for all where the host need not count."""
    room = RowRoom.static if precision is BF16 else RowRoom.exact
    return replace(layout, precision=precision, rate=1e-3, strategy=replace(layout.strategy, rows=room))


def main() -> None:
    """All layouts in all precisions."""
    launch = Launch.from_environment()
    world = World.join(launch, torch.device("cuda", launch.local_rank), launch.open_store(TIMEOUT))
    kept: list[ParallelModel] = []
    for name, layout in layouts(world.size).items():
        for precision, of_it in PRECISIONS.items():
            compare(f"{name} {precision}", of_precision(layout, of_it), launch, world, kept)
    world.leave()


if __name__ == "__main__":
    peer_memory.PeerMemory = SpoiltPlaces  # type: ignore[misc]
    main()
