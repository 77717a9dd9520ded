"""What a checkpoint costs training, written behind the steps and not, beside what the disk can do.

    python -m torch.distributed.run --standalone --nproc-per-node 2 benchmarks/async_save.py [key=value …]

Words are a training job's; checkpoints go to a folder of its own in run.root, and are deleted. In one job: steps
without a save; saves behind the steps, the first of which plans and takes the memory; one that holds training up, after
another that did so; verified loads, of files that the page cache has, and once the kernel was told to drop them (a file
system in memory keeps them); the disk's own limit (every rank writes past the page cache, in blocks of 16 MiB). Rank 0
prints JSON.
"""

import json
import mmap
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

from conf.command_line import CommandLine
from conf.compose import compose
from parallel.comm import Communicator
from parallel.engine import Engine
from parallel.mesh import Degrees
from parallel.world import TIMEOUT, Launch, World
from train.checkpoint.manifest import Progress
from train.checkpoint.store import CheckpointStore
from train.start.accepted import accept
from train.start.assembly import batch_maker, open_job_engine, open_loader
from train.step import OptimizerStep

WARM_UP, STEPS = 5, 20
"""Steps before anything is measured; steps without a save."""
WINDOW = 5
"""Steps after which ranks ask each other whether the save is still under way."""
BEHIND = 3
"""Saves behind steps."""
BLOCK = 1 << 24


def main() -> None:
    """Run on this rank."""
    launch = Launch.from_environment()
    composed = compose(CommandLine.parse(sys.argv[1:], "async_save").overrides, None)
    job = accept(composed.config, {}, launch)
    config, device = job.config, job.device
    world = World.join(launch, device, launch.open_store(TIMEOUT))
    comm = Communicator()
    engine = open_job_engine(config, Degrees.resolve(config.strategy, world.size), world, comm)
    step = OptimizerStep(engine, comm, batch_maker(job), config.train.global_batch_size, config.optim.clip_norm)
    tokens = config.train.global_batch_size * config.data.sequence_length
    root = Path(config.run.root).expanduser()
    root.mkdir(parents=True, exist_ok=True)
    folder = comm.broadcast_object(Path(tempfile.mkdtemp(prefix="async_save-", dir=root)) if world.rank == 0 else root)

    with open_loader(job, engine, Degrees.resolve(config.strategy, world.size), world, 0) as loader:

        def steps(n: int) -> float:
            """Seconds that `n` steps take, the device drained at both ends."""
            begun = time.perf_counter()
            for _ in range(n):
                result = step(next(loader), config.optim.lr)
            result.loss.item()
            return time.perf_counter() - begun

        def behind(store: CheckpointStore, number: int) -> dict[str, float]:
            """A save and the steps behind which it is written."""
            comm.barrier()
            begun = time.perf_counter()
            store.save(engine, Progress(number, 0), keep=1)
            blocked, windows = time.perf_counter() - begun, []
            while True:
                windows.append(steps(WINDOW))
                store.poll()
                if not any(comm.all_gather_numbers({"under_way": store.under_way})["under_way"]):
                    break
            store.finish(asked=number)
            # The save ended somewhere in the last window, which counts only where it is the only one.
            whole = windows[:-1]
            speed = WINDOW * tokens * len(whole or windows) / sum(whole or windows)
            covered = {"tokens_per_sec": speed, "steps_all_behind_it": WINDOW * len(whole)}
            return {"blocked_s": slowest(blocked), **covered, **saved(store)}

        def slowest(seconds: float) -> float:
            return max(comm.all_gather_numbers({"seconds": seconds})["seconds"])

        def saved(store: CheckpointStore) -> dict[str, float]:
            metrics = comm.broadcast_object(store.take_metrics())
            return {name: metrics[f"ckpt/{name}"] for name in ("total_s", "bytes", "gb_per_sec")}

        steps(WARM_UP)
        told: dict[str, object] = {
            "strategy": config.strategy.name,
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "ranks": world.size,
            "tokens_per_sec": tokens * STEPS / steps(STEPS),
        }
        store = CheckpointStore(folder, comm, behind=True)
        told["behind"] = [behind(store, number) for number in range(1, 1 + BEHIND)]
        told["tokens_per_sec_after"] = tokens * STEPS / steps(STEPS)
        waiting = CheckpointStore(folder, comm, behind=False)
        for number in (BEHIND + 1, BEHIND + 2):  # the first plans and takes the memory, and is not told
            comm.barrier()
            begun = time.perf_counter()
            waiting.save(engine, Progress(number, 0), keep=1)
            blocked = time.perf_counter() - begun
            waiting.finish(asked=number)
        told["waiting"] = {"blocked_s": slowest(blocked), **saved(waiting)}
        told["load_cached"] = load(waiting, engine, comm)
        drop_cached(folder / f"step-{number:08d}")
        told["load"] = load(waiting, engine, comm)
        if world.rank == 0:
            shutil.rmtree(folder / f"step-{number:08d}")
        comm.barrier()
        told["disk"] = disk_limit(folder, comm, own_bytes(engine))
        if world.rank == 0:
            print(json.dumps(told), flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    world.leave()


def load(store: CheckpointStore, engine: Engine, comm: Communicator) -> dict[str, float]:
    """A verified resume."""
    comm.barrier()
    begun = time.perf_counter()
    store.resume(engine)
    comm.barrier()
    return {"seconds": time.perf_counter() - begun}


def drop_cached(checkpoint: Path) -> None:
    """Tell this host's kernel that nobody will read the files of `checkpoint` again; they are synced."""
    for path in checkpoint.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def own_bytes(engine: Engine) -> int:
    """Of this rank's state, at most 4 GiB."""
    state = engine.weights() | engine.moments()
    return min(1 << 32, sum(shard.local.nbytes for shard in state.values()))


def disk_limit(folder: Path, comm: Communicator, n_bytes: int) -> dict[str, object]:
    """What all ranks together write to new files in `folder`, about `n_bytes` each, GB/s."""
    blocks = max(1, n_bytes // BLOCK)
    path = folder / f"direct-{comm.rank}"
    buffer = mmap.mmap(-1, BLOCK)  # its pages are aligned, as O_DIRECT wants
    buffer.write(os.urandom(BLOCK))
    flags = os.O_WRONLY | os.O_CREAT
    try:
        descriptor, direct = os.open(path, flags | os.O_DIRECT), True
    except OSError:  # a file system in memory has none
        descriptor, direct = os.open(path, flags), False
    comm.barrier()
    begun = time.perf_counter()
    for _ in range(blocks):
        os.write(descriptor, buffer)
    os.fsync(descriptor)
    comm.barrier()
    seconds = time.perf_counter() - begun
    os.close(descriptor)
    path.unlink()
    return {"gb_per_sec": comm.size * blocks * BLOCK / seconds / 1e9, "direct": direct}


if __name__ == "__main__":
    main()
