"""What the phase clock costs: windows of steps with it on and off, one after another, in one job.

    python -m torch.distributed.run --standalone --nproc-per-node 2 benchmarks/clock_overhead.py [key=value …]

Words are a training job's. Every pair of windows gives a ratio; rank 0 prints their median and spread, as JSON too.
What the clock says to the other ranks at the end of a window is in the time with it, as in training.
"""

import json
import statistics
import sys
import time
from contextlib import nullcontext

import torch

from conf.command_line import CommandLine
from conf.compose import compose
from parallel.clock.fsdp import fsdp_timed
from parallel.clock.phase_clock import Clock, Phase, PhaseClock
from parallel.clock.time_source import time_source
from parallel.comm import Communicator
from parallel.mesh import Degrees
from parallel.world import TIMEOUT, Launch, World
from train.metrics.step_time import StepTime, time_row
from train.start.accepted import accept
from train.start.assembly import batch_maker, open_job_engine, open_loader
from train.step import OptimizerStep

PAIRS, STEPS, WARM_UP = 8, 10, 10
"""Pairs of windows; steps of each; steps before the first."""


def main() -> None:
    """Run on this rank."""
    launch = Launch.from_environment()
    composed = compose(CommandLine.parse(sys.argv[1:], "clock_overhead").overrides, None)
    job = accept(composed.config, {}, launch)
    config, device = job.config, job.device
    world = World.join(launch, device, launch.open_store(TIMEOUT))
    degrees = Degrees.resolve(config.strategy, world.size)
    comm = Communicator()
    engine = open_job_engine(config, degrees, world, comm)
    step = OptimizerStep(engine, comm, batch_maker(job), config.train.global_batch_size, config.optim.clip_norm)
    step_time = StepTime(comm, pipelined=degrees.pp > 1)
    clock = PhaseClock(time_source(device))

    def window(on: bool) -> float:
        """Seconds a step."""
        comm.clock = clock if on else Clock()
        comm.barrier()
        clock.end_window()
        began = time.perf_counter()
        with fsdp_timed(comm.clock, device) if on else nullcontext():
            for _ in range(STEPS):
                comm.clock.enter(Phase.data_wait)
                result = step(next(loader), config.optim.lr)
                comm.clock.enter(Phase.log)
        result.loss.item()
        if measured := comm.clock.end_window():
            time_row(comm.all_gather_numbers(step_time.own(measured)), measured.steps)
        return (time.perf_counter() - began) / STEPS

    with open_loader(job, engine, degrees, world, 0) as loader:
        for _ in range(WARM_UP):
            step(next(loader), config.optim.lr)
        window(True)
        pairs = [
            (window(True), window(False)) if pair % 2 else (window(False), window(True))[::-1] for pair in range(PAIRS)
        ]
    if world.rank == 0:
        ratios = sorted(off / on for on, off in pairs)
        tokens = config.train.global_batch_size * config.data.sequence_length
        print(
            json.dumps(
                {
                    "strategy": config.strategy.name,
                    "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
                    "tokens_per_sec_on": tokens / statistics.median(on for on, _ in pairs),
                    "tokens_per_sec_off": tokens / statistics.median(off for _, off in pairs),
                    "ratio_median": statistics.median(ratios),
                    "ratio_min": ratios[0],
                    "ratio_max": ratios[-1],
                }
            )
        )
    world.leave()


if __name__ == "__main__":
    main()
