"""`torchrun --nproc-per-node N -m train key=value …`: one rank of one job, from its command line to its summary.

What can be refused is refused before a process group exists, so that no rank is left waiting for another.
"""

import os

from train.faults.parent import LAUNCHED_BY_TORCHRUN, die_with_parent

if LAUNCHED_BY_TORCHRUN in os.environ:
    die_with_parent()  # before the imports, which take seconds, and in which the parent may go

import sys
import time
from pathlib import Path
from typing import Any

import yaml

from conf.command_line import CommandLine
from conf.compose import compose
from conf.schema import JobConfig
from models.config import ConfigError
from models.flops import flops_per_token
from parallel.acceptance import tell_refusal
from parallel.clock.fsdp import fsdp_timed
from parallel.clock.phase_clock import Clock, PhaseClock
from parallel.clock.time_source import time_source
from parallel.comm import Communicator
from parallel.world import TIMEOUT, Launch, World
from train.checkpoint.folder import committed, step_of
from train.data.source import check_same_corpus
from train.failure import INTERRUPTED, JobEnds, end_together, exit_at_once, fail, refuse
from train.faults.guard import guarded
from train.faults.restarts import agent, stay_ended
from train.faults.stop import all_together
from train.full_disk import said_in_one_line
from train.ledger.attempt import open_attempt
from train.ledger.events import now_ns
from train.ledger.launcher import launched, submitted
from train.metrics.peak import Peak, peak_flops
from train.metrics.summary import RunSummary
from train.report import finished_summary
from train.run_folder import new_folder
from train.shared_folder import shared_folder
from train.start.accepted import Accepted, accept
from train.start.assembly import run


def main(arguments: list[str] | None = None) -> None:
    """Run this rank. Exits 0 when trained, 2 when refused, 1 when failed, 130 when interrupted, and
    as train/faults/stop.py says when stopped."""
    started, main_ns = time.monotonic(), now_ns()
    launch = Launch.from_environment()
    try:
        job = _read(sys.argv[1:] if arguments is None else arguments, launch)
        if job is None:
            return
        store = launch.open_store(TIMEOUT)
        world = World.join(launch, job.device, store)
        _train(job, launch, world, started, main_ns)
        world.leave()
    except ConfigError as error:
        refuse(error, launch)
    except JobEnds as end:
        end_together(end.line, end.exit_code, launch)
    except Exception as error:
        fail(error, launch)
    except KeyboardInterrupt:  # every rank gets it, and none has anything to say
        os._exit(INTERRUPTED)


def _read(arguments: list[str], launch: Launch) -> Accepted | None:
    """The job that the words say; None if they ask to see it and no more.

    Raises:
        ConfigError: one line that says what to change; ranks that find nothing wrong are told.
    """
    try:
        line = CommandLine.parse(arguments, program="python -m train")
        composed = compose(line.overrides, line.config_dir)
        if not line.print_config:
            return accept(composed.config, yaml.safe_load(composed.yaml), launch)
    except ConfigError as error:
        tell_refusal(launch, error)
        raise
    if launch.rank == 0:
        print(composed.yaml, end="")
    return None


def _train(job: Accepted, launch: Launch, world: World, started: float, main_ns: int) -> None:
    """Agree on the corpus and the folder, and run."""
    config = job.config
    clock = PhaseClock(time_source(world.device)) if config.measure.clock else Clock()
    comm = Communicator(clock)
    check_same_corpus(comm.all_gather_object(job.corpus.fingerprint))
    launcher = os.getppid() if launch.launched else None
    named = job.folder or new_folder(config.run, config.model.name, config.strategy.name, launcher)
    folder = comm.broadcast_object(named)
    with shared_folder(folder, comm, world.rank):
        finished = comm.broadcast_object(_finished(folder, config.train.steps) if world.rank == 0 else None)
        if finished:
            # Started again with nothing left to do. Its record stays as it is: no attempt is added, no time replaced.
            if world.rank == 0:
                finished.print()
            return
        with all_together(comm):
            stay_ended(folder, comm, world.rank)
        comm.barrier()
        joined_ns = now_ns()
        peak = peak_flops(world.device, config.precision.compute.torch)
        facts = _attempt_facts(config, peak)
        with (
            all_together(comm),
            said_in_one_line(folder),
            open_attempt(folder, comm, world, main_ns, joined_ns, facts) as attempt,
            guarded(folder, attempt, launch, clock, config.recovery) as guard,
            fsdp_timed(clock, world.device),
        ):
            run(job, world, comm, folder, attempt, guard, peak, started)


def _finished(folder: Path, steps: int) -> RunSummary | None:
    """The summary of a job that did all of `steps` and saved the last; None if something is left to do."""
    saved = committed(folder / "checkpoints")
    return finished_summary(folder, steps) if saved and step_of(saved[-1]) == steps else None


def _attempt_facts(config: JobConfig, peak: Peak) -> dict[str, Any]:
    """What the books know of an attempt from its configuration."""
    sequence_length = config.data.sequence_length
    return {
        "agent": agent(),
        "launched": launched(),
        "submitted": submitted(),
        "layout": config.strategy.name,
        "tokens_per_step": config.train.global_batch_size * sequence_length,
        "flops_per_token": flops_per_token(config.model, sequence_length, causal=True),
        "peak_flops": peak.tflops * 1e12,
    }


if __name__ == "__main__":
    main()
    exit_at_once(0)
