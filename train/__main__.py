"""`torchrun --nproc-per-node N -m train key=value …`: one rank of one job, from its command line to its summary.

What can be refused is refused before a process group exists, so that no rank is left waiting for another.
"""

import os
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from conf.command_line import CommandLine
from conf.compose import compose, read_job
from conf.schema import JobConfig, validate
from models.config import ConfigError
from models.flops import count_parameters, flops_per_token
from models.hf_config import function_values, word
from parallel.acceptance import tell_refusal, wait_for_acceptance
from parallel.check_engine import check_engine_device
from parallel.clock.fsdp import fsdp_timed
from parallel.clock.phase_clock import Clock, PhaseClock
from parallel.clock.time_source import time_source
from parallel.comm import Communicator
from parallel.engine import Engine
from parallel.mesh import Degrees
from parallel.nodes import experts_across_nodes
from parallel.open_engine import open_engine
from parallel.world import TIMEOUT, Launch, World, choose_device
from train.batch import BatchMaker
from train.checkpoint.folder import check_steps_left, committed, newest_checkpoint, step_of
from train.checkpoint.hooks import Hooks
from train.checkpoint.store import CheckpointStore
from train.data.config import Boundaries
from train.data.corpus import open_corpus
from train.data.loader import BatchLoader
from train.data.source import Corpus, check_same_corpus
from train.failure import INTERRUPTED, JobEnds, end_together, exit_at_once, fail, refuse
from train.faults.config import Place
from train.faults.guard import Guard, guarded
from train.faults.injector import Injector
from train.faults.non_finite import NonFiniteSteps
from train.faults.parent import LAUNCHED_BY_TORCHRUN, die_with_parent
from train.faults.stop import STOP_FILE, all_together
from train.init_from import CheckpointWeights, Weights, find_weights
from train.ledger.attempt import OpenAttempt, open_attempt
from train.ledger.events import now_ns
from train.ledger.launcher import launched, submitted
from train.ledger.tiles import Tiles
from train.loop import Trainer
from train.meter import Meter
from train.metrics.energy import EnergyMeter
from train.metrics.peak import Peak, peak_flops
from train.metrics.step_time import StepTime
from train.metrics.summary import Attempt, RunSummary
from train.metrics.throughput import ModelWork, Throughput
from train.optimizer import build_optimizer
from train.report import Report, finished_summary
from train.run_folder import (
    check_same_job,
    describe_environment,
    device_name,
    named_folder,
    new_folder,
    write_config,
)
from train.shared_folder import shared_folder
from train.step import OptimizerStep
from train.trace.plan import TracePlan
from train.trace.ranges import check_nvtx, nvtx_range
from train.trace.traced_steps import TracedSteps
from train.trace.tracer import Tracer


@dataclass(frozen=True)
class Accepted:
    """A job that one rank alone found nothing wrong with."""

    config: JobConfig
    plain: dict[str, Any]
    """The same as plain values."""
    device: torch.device
    corpus: Corpus
    folder: Path | None
    """None: to be named by the start of the run."""
    init_from: Weights | None
    """To start from; None: from the seed."""


def main(arguments: list[str] | None = None) -> None:
    """Run this rank. Exits 0 when trained, 2 when refused, 1 when failed, 130 when interrupted, and
    as train/faults/stop.py says when stopped."""
    started, main_ns = time.monotonic(), now_ns()
    launch = Launch.from_environment()
    if LAUNCHED_BY_TORCHRUN in os.environ:
        die_with_parent()
    try:
        job = _read(sys.argv[1:] if arguments is None else arguments, launch)
        if job is None:
            return
        store = launch.open_store(TIMEOUT)
        wait_for_acceptance(store, launch.world_size)
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
            return _accept(composed.config, yaml.safe_load(composed.yaml), launch)
    except ConfigError as error:
        tell_refusal(launch, error)
        raise
    if launch.rank == 0:
        print(composed.yaml, end="")
    return None


def _accept(config: JobConfig, plain: dict[str, Any], launch: Launch) -> Accepted:
    """Look at everything that can be looked at without the other ranks.

    Raises:
        ConfigError: one line that says what to change.
    """
    validate(config, launch.world_size, launch.local_world_size)
    degrees = Degrees.resolve(config.strategy, launch.world_size)
    if launch.rank == 0 and (note := experts_across_nodes(config.strategy, degrees, launch.local_world_size)):
        print(f"switchyard: {note}", file=sys.stderr)
    device = choose_device(config.train.device.value, launch)
    check_engine_device(config.strategy, device)
    check_nvtx(config.measure.nvtx, device)
    corpus = open_corpus(config.data, config.model.vocab_size, config.train.seed)
    folder = named_folder(config.run)
    if folder:
        check_same_job(folder, plain, corpus.fingerprint)
        check_steps_left(folder / "checkpoints", config.train.steps)
        if (folder / STOP_FILE).exists():
            raise ConfigError(f"{folder / STOP_FILE} asks this run to stop: remove it to go on")
    starting = not folder or newest_checkpoint(folder / "checkpoints") is None
    init_from = find_weights(config.model.init_from, config.model) if config.model.init_from and starting else None
    if isinstance(init_from, CheckpointWeights) and launch.rank == 0:
        _say_what_is_other(init_from, config)
    return Accepted(config, plain, device, corpus, folder, init_from)


def _say_what_is_other(weights: CheckpointWeights, config: JobConfig) -> None:
    """Shapes fit; but a model that turns, scores or weighs otherwise is another function of the same weights. It may be
    meant (a longer context by YaRN), so it is said and not refused."""
    path = weights.checkpoint.parents[1] / "config.yaml"
    if not path.exists():
        return
    try:
        here, there = function_values(config.model), function_values(read_job(path).model)
    except ConfigError:  # another version's; its weights fit all the same
        return
    other = [f"model.{key}={word(there[key])}" for key in there if here.get(key, there[key]) != there[key]]
    if other:
        print(
            f"switchyard: model.init_from={config.model.init_from} was trained with {' '.join(other)}", file=sys.stderr
        )


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
        comm.barrier()
        joined_ns = now_ns()
        peak = peak_flops(world.device, config.precision.compute.torch)
        facts = _attempt_facts(config, peak)
        with (
            all_together(comm),
            open_attempt(folder, comm, world, main_ns, joined_ns, facts) as attempt,
            guarded(folder, attempt, launch, clock, config.recovery) as guard,
            fsdp_timed(clock, world.device),
        ):
            _run(job, world, comm, folder, attempt, guard, peak, started)


def _finished(folder: Path, steps: int) -> RunSummary | None:
    """The summary of a job that did all of `steps` and saved the last; None if something is left to do."""
    saved = committed(folder / "checkpoints")
    return finished_summary(folder, steps) if saved and step_of(saved[-1]) == steps else None


def _attempt_facts(config: JobConfig, peak: Peak) -> dict[str, Any]:
    """What the books know of an attempt from its configuration."""
    sequence_length = config.data.sequence_length
    return {
        "launched": launched(),
        "submitted": submitted(),
        "layout": config.strategy.name,
        "tokens_per_step": config.train.global_batch_size * sequence_length,
        "flops_per_token": flops_per_token(config.model, sequence_length, causal=True),
        "peak_flops": peak.tflops * 1e12,
    }


def _run(
    job: Accepted,
    world: World,
    comm: Communicator,
    folder: Path,
    attempt: OpenAttempt,
    guard: Guard,
    peak: Peak,
    started: float,
) -> None:
    """Build what the configuration names, and let it run."""
    config = job.config
    degrees = Degrees.resolve(config.strategy, world.size)
    injector = Injector(config.faults.inject, world.rank, attempt.number, folder)
    injector.listen(comm.clock)
    injector.reach(Place.start)
    engine = _open_engine(config, degrees, world, comm)
    store = _open_store(config, folder, attempt, guard, injector, comm, world)  # here ranks wait for the last of them
    attempt.tiles.end("init_model")
    guard.beat.at("ckpt_load")
    resumed = store.resume(engine)
    progress = resumed.progress
    guard.beat.at("init_model", progress.step)
    attempt.tiles.end("ckpt_load")
    attempt.ledger.write("resumed", step=progress.step, passed_over=resumed.passed_over)
    if job.init_from and progress.step == 0:
        weights = engine.weights()
        job.init_from.load(weights, comm)
        engine.take_state(weights, steps_done=0)

    described = _describe_attempt(config, world, engine, comm, progress.step, peak)
    report = _open_report(job, folder, described, started) if world.rank == 0 else None
    loader = _open_loader(job, engine, degrees, world, progress.step)
    plan = TracePlan(config.measure, range(progress.step + 1, config.train.steps + 1), folder)
    trainer = Trainer(
        train=config.train,
        optim=config.optim,
        checkpoint=config.checkpoint,
        step=OptimizerStep(
            engine,
            comm,
            _batch_maker(job),
            config.train.global_batch_size,
            config.optim.clip_norm,
            asks=guard.stop.own,
            injector=injector,
        ),
        eval_micro_batch_size=config.train.eval_micro_batch(degrees.dp, degrees.pp),
        loader=loader,
        heldout=job.corpus.heldout,
        store=store,
        meter=_open_meter(job, described, engine, world, comm, plan, attempt.tiles, started),
        traces=_open_traces(job, plan, world, comm, folder),
        guard=guard,
        injector=injector,
        non_finite=NonFiniteSteps(config.recovery, attempt.ledger, report.note if report else None),
        check_replicas_every=config.recovery.check_replicas_every,
        report=report,
        comm=comm,
        device=world.device,
    )
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(world.device)  # the start's temporaries are not the run's memory
    with loader, report or nullcontext():
        trainer.run(progress)
    if report and guard.fence.still_ours(at_once=True):
        report.summarise()


def _open_store(
    config: JobConfig,
    folder: Path,
    attempt: OpenAttempt,
    guard: Guard,
    injector: Injector,
    comm: Communicator,
    world: World,
) -> CheckpointStore:
    hooks = Hooks(
        ledger=attempt.ledger,
        still_ours=partial(guard.fence.still_ours, at_once=True),
        reach=injector.reach,
        committed=injector.committed,
    )
    return CheckpointStore(folder / "checkpoints", comm, world.rank, behind=config.overlap.checkpoint, hooks=hooks)


def _open_meter(
    job: Accepted,
    attempt: Attempt,
    engine: Engine,
    world: World,
    comm: Communicator,
    plan: TracePlan,
    tiles: Tiles,
    started: float,
) -> Meter:
    config = job.config
    return Meter(
        comm=comm,
        rank=world.rank,
        device=world.device,
        model=config.model,
        placement=engine.placement,
        throughput=Throughput(_work(config, attempt)),
        step_time=StepTime(comm, pipelined=Degrees.resolve(config.strategy, world.size).pp > 1),
        energy=EnergyMeter.open(world.device),
        plan=plan,
        tiles=tiles,
        gpu_hour_usd=config.measure.gpu_hour_usd,
        n_gpus=world.size if world.device.type == "cuda" else 0,
        started=started,
    )


def _open_traces(job: Accepted, plan: TracePlan, world: World, comm: Communicator, folder: Path) -> TracedSteps:
    measure = job.config.measure
    tracer = Tracer(folder, world.rank, world.device) if world.rank in measure.trace_ranks else None
    return TracedSteps(plan, tracer, comm, nvtx_range if measure.nvtx else None)


def _open_engine(config: JobConfig, degrees: Degrees, world: World, comm: Communicator) -> Engine:
    return open_engine(
        config.model,
        config.strategy,
        config.overlap,
        config.precision,
        world,
        comm,
        config.train.seed,
        n_micro_batches=config.train.micro_batches(degrees.dp, degrees.pp),
        sequence_length=config.data.sequence_length,
        make_optimizer=partial(build_optimizer, optim=config.optim),
    )


def _batch_maker(job: Accepted) -> BatchMaker:
    boundaries = job.config.data.boundaries
    separator = job.corpus.separator if boundaries is not Boundaries.none else None
    return BatchMaker(separator, split_attention=boundaries is Boundaries.attention)


def _describe_attempt(
    config: JobConfig, world: World, engine: Engine, comm: Communicator, resumed_after_step: int, peak: Peak
) -> Attempt:
    parameters = count_parameters(config.model)
    name = device_name(world.device)
    time_source = f"{comm.clock.source}; {engine.unseen}" if engine.unseen else comm.clock.source
    return Attempt(resumed_after_step, world.size, name, peak, parameters.total, parameters.active, time_source)


def _work(config: JobConfig, attempt: Attempt) -> ModelWork:
    length = config.data.sequence_length
    causal, square = (flops_per_token(config.model, length, causal=causal) for causal in (True, False))
    return ModelWork(causal, square, attempt.peak.tflops, attempt.world_size)


def _open_report(job: Accepted, folder: Path, attempt: Attempt, started: float) -> Report:
    environment = describe_environment(attempt, job.corpus.fingerprint)
    write_config(folder, job.plain, environment)
    described = job.plain | {"environment": environment}
    return Report(folder, job.config.logging, described, job.config.train.steps, attempt, started)


def _open_loader(job: Accepted, engine: Engine, degrees: Degrees, world: World, start_step: int) -> BatchLoader:
    train = job.config.train
    return BatchLoader(
        stream=job.corpus.train,
        global_batch_size=train.global_batch_size,
        micro_batch_size=train.micro_batch(degrees.dp, degrees.pp),
        dp_rank=engine.data.rank,
        dp_size=engine.data.size,
        start_step=start_step,
        prefetch=job.config.overlap.data,
        device=world.device,
    )


if __name__ == "__main__":
    main()
    exit_at_once(0)
