"""`torchrun … -m gpu.engines_on_gpus`: every engine on this rank's GPU, one after another; rank 0 prints the losses.

One launch for all, since a launch costs more than a case.
"""

import gc
import json
from dataclasses import replace

import torch
from harness.layout_run import BF16, ENGINES, FP32, FSDP, Layout, run_layout

from parallel.config import EngineName
from parallel.world import TIMEOUT, Launch, World

# DDP before FSDP2, which Accelerate keeps to once it has had it; ZeRO-3 last, which takes torch's linear for itself.
STRATEGIES = {
    "accelerate_ddp": ENGINES["accelerate_ddp"],
    "accelerate_fsdp": replace(FSDP, engine=EngineName.accelerate),
} | {name: strategy for name, strategy in ENGINES.items() if name.startswith("deepspeed")}
PRECISIONS = {"fp32": FP32, "bf16": BF16}
LAYOUT = Layout(micro_batch_size=2, steps=5, rate=1e-3)


def main() -> None:
    """Train each, and print a line of JSON for each."""
    launch = Launch.from_environment()
    device = torch.device("cuda", launch.local_rank)
    world = World.join(launch, device, launch.open_store(TIMEOUT))
    for name, strategy in STRATEGIES.items():
        for precision, of_precision in PRECISIONS.items():
            if strategy.engine is EngineName.accelerate:
                forget_accelerate()
            outcome = run_layout(replace(LAYOUT, strategy=strategy, precision=of_precision), device)
            if launch.rank == 0:
                told = {"losses": outcome.losses, "evals": outcome.evals, "grad_norms": outcome.grad_norms}
                print(json.dumps({"engine": name, "precision": precision, **told}), flush=True)
            gc.collect()
    world.leave()


def forget_accelerate() -> None:
    """It keeps the first Accelerator's settings for the life of a process, and says nothing of the second's."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


if __name__ == "__main__":
    main()
