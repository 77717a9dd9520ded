"""A job put together: what the configuration names is built, each part once, and runs."""

import sys
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

import torch

from conf.schema import JobConfig
from models.flops import count_parameters, flops_per_token
from parallel.comm import Communicator
from parallel.config import EngineName
from parallel.engine import Engine
from parallel.mesh import Degrees
from parallel.open_engine import open_engine
from parallel.settling import settling_steps
from parallel.world import World
from train.batch import BatchMaker
from train.checkpoint.hooks import Hooks
from train.checkpoint.store import CheckpointStore
from train.counting import Counting
from train.data.config import Boundaries
from train.data.loader import BatchLoader
from train.faults.config import Place
from train.faults.fence import Fence
from train.faults.guard import Guard
from train.faults.injector import Injector
from train.faults.non_finite import NonFiniteSteps
from train.ledger.attempt import OpenAttempt
from train.ledger.tiles import Tiles
from train.loop import Trainer
from train.meter import Meter
from train.metrics.counts import COUNTS_FILE
from train.metrics.energy import EnergyMeter
from train.metrics.peak import Peak
from train.metrics.step_time import StepTime
from train.metrics.summary import Attempt
from train.metrics.throughput import ModelWork, Throughput
from train.optimizer import build_optimizer
from train.report import Report
from train.run_folder import describe_environment, device_name, write_config
from train.start.accepted import Accepted
from train.step import OptimizerStep
from train.trace.plan import TracePlan
from train.trace.ranges import nvtx_range
from train.trace.traced_steps import TracedSteps
from train.trace.tracer import Tracer


def run(
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
    engine = open_job_engine(config, degrees, world, comm)
    store = _open_store(config, folder, attempt, guard, injector, comm)  # here ranks wait for the last of them
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
        engine.take_state(weights, updates_done=0)

    described = _describe_attempt(config, world, engine, comm, progress.step, peak)
    report = _open_report(job, folder, described, started, attempt.number) if world.rank == 0 else None
    loader = open_loader(job, engine, degrees, world, progress.step)
    steps = range(progress.step + 1, config.train.steps + 1)
    plan = TracePlan(config.measure, steps, folder, settling_steps(config.strategy.cuda_graph))
    non_finite = NonFiniteSteps(config.recovery, attempt.ledger, report.note if report else None)
    native = config.strategy.engine is EngineName.native
    counting = Counting(comm, metered=native) if config.measure.counts else None
    trainer = Trainer(
        train=config.train,
        optim=config.optim,
        checkpoint=config.checkpoint,
        step=OptimizerStep(
            engine,
            comm,
            batch_maker(job),
            config.train.global_batch_size,
            config.optim.clip_norm,
            asks=lambda: guard.stop.own(left_out=non_finite.in_a_row > 0),
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
        counting=counting,
        non_finite=non_finite,
        check_replicas_every=config.recovery.check_replicas_every,
        report=report,
        comm=comm,
        device=world.device,
    )
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(world.device)  # the start's temporaries are not the run's memory
    if report and progress.step < config.train.steps:
        forget_counts(folder, guard.fence)
    with loader, report or nullcontext():
        trainer.run(progress)
    if injector.left:
        print(f"switchyard: faults.inject: on rank {world.rank} these did not happen: {injector.left}", file=sys.stderr)
    if report and guard.fence.still_ours(at_once=True):
        if counting and (counts := counting.counts()):
            counts.write(folder / COUNTS_FILE)
        report.summarise()


def forget_counts(folder: Path, fence: Fence) -> None:
    """An earlier attempt's: this one may be stopped before its own. Losing them, or keeping them, stops no training."""
    if fence.still_ours(at_once=True):
        with suppress(OSError):
            (folder / COUNTS_FILE).unlink(missing_ok=True)


def _open_store(
    config: JobConfig,
    folder: Path,
    attempt: OpenAttempt,
    guard: Guard,
    injector: Injector,
    comm: Communicator,
) -> CheckpointStore:
    hooks = Hooks(
        ledger=attempt.ledger,
        attempt=attempt.number,
        still_ours=partial(guard.fence.still_ours, at_once=True),
        reach=injector.reach,
        committed=injector.committed,
    )
    return CheckpointStore(folder / "checkpoints", comm, behind=config.overlap.checkpoint, hooks=hooks)


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


def open_job_engine(config: JobConfig, degrees: Degrees, world: World, comm: Communicator) -> Engine:
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


def batch_maker(job: Accepted) -> BatchMaker:
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


def _open_report(job: Accepted, folder: Path, attempt: Attempt, started: float, number: int) -> Report:
    environment = describe_environment(attempt, job.corpus.fingerprint)
    write_config(folder, job.plain, environment)
    described = job.plain | {"environment": environment}
    config = job.config
    return Report(
        *(folder, config.logging, described, config.train.steps, attempt, started, number),
        expert_load=config.measure.expert_load,
    )


def open_loader(job: Accepted, engine: Engine, degrees: Degrees, world: World, start_step: int) -> BatchLoader:
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
