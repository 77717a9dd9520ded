"""`torchrun … -m gpu.side_by_side_on_gpus`: steps with overlap.forward_backward and without; rank 0 prints what they
lost, and what memory they took.

Whatever the allocator has free is filled with NaN before each exchange and each wait, on the stream that is current
there: the lane before rows start, the compute stream before they are read. What was given away too early is spoilt.
"""

import gc
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from harness.layout_run import BF16, DDP, FP64, FSDP, MODEL, ZERO1, Layout, batches_of, lay_out
from torch import Tensor
from torch.distributed import ProcessGroup

from parallel.comm import Awaited, Communicator, Pending
from parallel.comm_kind import CommKind
from parallel.config import OverlapConfig, Recompute
from parallel.native_engine import NativeEngine
from parallel.world import TIMEOUT, Launch, World
from train.config import OptimConfig
from train.optimizer import build_optimizer
from train.step import OptimizerStep

KEPT = OverlapConfig(reshard_after_forward=False)
WIDE = replace(MODEL, dim=256, max_sequence_length=256, moe=replace(MODEL.moe, n_routed=8, expert_dim=128))
LAYOUTS = {
    "ep": Layout(replace(DDP, ep=2), KEPT),
    "ep_recompute": Layout(replace(DDP, ep=2, recompute=Recompute.full), KEPT),
    "zero1": Layout(replace(ZERO1, ep=2), KEPT),
    "fsdp": Layout(replace(FSDP, ep=2), KEPT),
    "tp": Layout(replace(DDP, ep=2, tp=2), KEPT),
}
PRECISIONS = {"fp64": FP64, "bf16": BF16}
"""In float64 losses are equal; in bfloat16 nobody waits for the host but for counts, so that streams run apart."""
STEPS = 10
LONG = 200
AT = (50, 100, 150, 200)
"""Steps of the long run after which memory is read."""


class Poisoning(Communicator):
    """Fills what is free with NaN."""

    def start_all_to_all(
        self, tensor: Tensor, sent: Sequence[int], received: Sequence[int], group: ProcessGroup, kind: CommKind
    ) -> Pending:
        spoil(tensor)
        pending = super().start_all_to_all(tensor, sent, received, group, kind)
        spoil(tensor)
        return pending

    def start_own(
        self,
        operation: str,
        tensor: Tensor,
        group: ProcessGroup,
        kind: CommKind,
        start: Callable[[], tuple[Tensor, Awaited]],
    ) -> Pending:
        spoil(tensor)
        pending = super().start_own(operation, tensor, group, kind, start)
        spoil(tensor)
        return pending

    def wait(self, pending: Pending) -> Tensor:
        spoil(pending.output)
        output = super().wait(pending)
        spoil(output)
        return output


def spoil(like: Tensor) -> None:
    """Blocks of the sizes that rows and gradients have."""
    if like.is_cuda and like.is_floating_point():
        blocks = [like.new_empty(size) for size in (*4 * (like.numel(),), like.numel() // 2, 2 * like.numel())]
        for block in blocks:
            block.fill_(float("nan"))


def train(layout: Layout, steps: int, comm: Communicator, world: World) -> tuple[list[float], list[list[int]]]:
    """Losses, and bytes allocated, reserved and most allocated at each of AT."""
    parallel, config = lay_out(layout, world, comm)
    dtype = layout.precision.compute.torch
    engine = NativeEngine(parallel, partial(build_optimizer, optim=OptimConfig()), comm, dtype)
    step = OptimizerStep(engine, comm, layout.batching, config.global_batch_size, clip_norm=1.0)
    loader = batches_of(layout, engine.data, device=world.device)
    losses, memory = [], []
    for number in range(1, steps + 1):
        losses.append(step(next(loader), rate=layout.rate).loss)
        if number in AT:
            torch.cuda.synchronize()
            memory.append(
                [torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), torch.cuda.max_memory_allocated()]
            )
    return [loss.item() for loss in losses], memory


def main() -> None:
    """Train each, and print a line of JSON for each."""
    launch = Launch.from_environment()
    world = World.join(launch, torch.device("cuda", launch.local_rank), launch.open_store(TIMEOUT))
    for name, layout in LAYOUTS.items():
        for precision, of_precision in PRECISIONS.items():
            for on in (False, True):
                overlap = replace(layout.overlap, forward_backward=on)
                run = replace(
                    layout, overlap=overlap, precision=of_precision, model=WIDE, micro_batch_size=1, rate=1e-3
                )
                losses, _ = train(run, STEPS, Poisoning(), world)
                tell(launch, {"layout": name, "precision": precision, "on": on, "losses": losses})
                gc.collect()
    torch.cuda.reset_peak_memory_stats()
    on = replace(LAYOUTS["ep"], overlap=replace(KEPT, forward_backward=True), precision=BF16, model=WIDE)
    _, memory = train(replace(on, micro_batch_size=1, rate=1e-3), LONG, Communicator(), world)
    tell(launch, {"layout": "ep", "precision": "bf16", "on": True, "memory": memory})
    world.leave()


def tell(launch: Launch, row: dict[str, object]) -> None:
    """By rank 0."""
    if launch.rank == 0:
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
