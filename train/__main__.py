"""`torchrun --nproc-per-node N -m train key=value …`: one rank of one job, from its command line to its summary.

What can be refused is refused before a process group exists, so that no rank is left waiting for another.
"""

import sys
from pathlib import Path
from typing import Any

import yaml

from conf.command_line import CommandLine
from conf.compose import compose
from conf.schema import JobConfig, validate
from models.config import ConfigError
from models.flops import count_parameters, flops_per_token
from parallel.comm import Communicator
from parallel.parallelize import parallelize
from parallel.world import Launch, World, choose_device
from train.checkpoint import CheckpointStore, check_steps_left, find_weights, load_weights
from train.data.corpus import open_corpus
from train.data.loader import BatchLoader
from train.data.source import Corpus
from train.failure import fail, refuse
from train.loop import Trainer
from train.metrics.peak import peak_flops
from train.metrics.throughput import ModelWork, Throughput
from train.optimizer import build_optimizer
from train.report import Report, finished_summary
from train.run_folder import check_same_job, describe_environment, named_folder, new_folder, write_config


def main(arguments: list[str] | None = None) -> None:
    """Run this rank. Exits 0 when trained, 2 when refused, 1 when failed."""
    launch = Launch.from_environment()
    try:
        line = CommandLine.parse(sys.argv[1:] if arguments is None else arguments, program="python -m train")
        composed = compose(line.overrides, line.config_dir)
        if line.print_config:
            if launch.rank == 0:
                print(composed.yaml, end="")
            return
        job, plain = composed.config, yaml.safe_load(composed.yaml)
        validate(job, launch.world_size)
        device = choose_device(job.train.device.value, launch.local_rank)
        corpus = open_corpus(job.data, job.model.vocab_size, job.train.seed)
        folder = named_folder(job.run)
        if folder:
            check_same_job(folder, plain, corpus.fingerprint)
            check_steps_left(folder / "checkpoints", job.train.steps)
        init_from = find_weights(job.model.init_from, job.model) if job.model.init_from else None
    except ConfigError as error:
        refuse(error, launch)
    try:
        world = World.join(launch, device)
        _train(job, plain, world, corpus, folder, init_from)
        world.leave()
    except ConfigError as error:
        refuse(error, launch)
    except Exception as error:
        fail(error, launch)


def _train(
    job: JobConfig, plain: dict[str, Any], world: World, corpus: Corpus, folder: Path | None, init_from: Path | None
) -> None:
    """Build what the configuration names, and let it run."""
    comm = Communicator()
    folder = comm.broadcast_object(folder or new_folder(job.run, job.model.name, job.strategy.name))
    parallel = parallelize(job.model, job.strategy, job.overlap, job.precision, world, comm, job.train.seed)
    optimizer = build_optimizer(parallel.model, job.optim)
    store = CheckpointStore(folder / "checkpoints", comm, world.rank)
    progress = store.resume(parallel.model, optimizer)
    if progress.step == job.train.steps and (finished := finished_summary(folder, progress.step)):
        # Started again with nothing left to do. Its record stays as it is: no attempt is added, no wall time replaced.
        if world.rank == 0:
            finished.print()
        return
    peak = peak_flops(world.device, job.precision.compute.torch)
    environment = describe_environment(world.size, world.device, peak, corpus.fingerprint)
    if world.rank == 0:
        write_config(folder, plain, environment)
    if init_from and progress.step == 0:
        load_weights(parallel.model, init_from)

    length = job.data.sequence_length
    work = ModelWork(
        flops_per_token(job.model, length), flops_per_token(job.model, length, causal=False), peak.tflops, world.size
    )
    loader = BatchLoader(
        source=corpus.train,
        seed=job.train.seed,
        global_batch_size=job.train.global_batch_size,
        micro_batch_size=job.train.micro_batch(parallel.degrees.dp),
        dp_rank=parallel.dp_rank,
        dp_size=parallel.degrees.dp,
        start_step=progress.step,
        prefetch=job.overlap.data,
        device=world.device,
    )
    report = None
    if world.rank == 0:
        report = Report(folder, job.logging, plain | {"environment": environment}, job.train.steps)
        report.begin(progress.step, count_parameters(job.model), peak, world.size, environment["device"])
    trainer = Trainer(
        train=job.train,
        optim=job.optim,
        checkpoint=job.checkpoint,
        parallel=parallel,
        optimizer=optimizer,
        loader=loader,
        heldout=corpus.heldout,
        store=store,
        throughput=Throughput(work),
        report=report,
        comm=comm,
        device=world.device,
    )
    try:
        with loader:
            trainer.run(progress)
    except BaseException:
        if report:
            report.abandon()
        raise
    if report:
        report.end()


if __name__ == "__main__":
    main()
