"""Jobs that run to their end undisturbed, each once a session, whichever of its processes asks first: a launch costs
seconds, and many tests look at one."""

import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest
from harness.job_in_pool import job_in_pool
from harness.run_record import RunRecord
from harness.torchrun import torchrun
from harness.worker_pool import WorkerPool

from train.data.file_lock import FileLock

JOB = (
    "model=tiny",
    "train.device=cpu",
    "train.steps=20",
    "train.log_every=1",
    "train.eval_every=10",
    "train.eval_sequences=8",
    "optim.warmup_steps=5",
    "checkpoint.every=5",
)
"""What all of them have in common; long enough for warm-up, decay and four checkpoints."""

WORDS = {
    # In float32 the three take the same micro-batches of 4: summed in another order, products are rounded otherwise.
    "single fp32": (1, "strategy=single", "train.micro_batch_size=4", "logging=off"),
    "ddp fp32": (2, "strategy=ddp", "train.micro_batch_size=4"),
    "fsdp fp32": (2, "strategy=fsdp", "train.micro_batch_size=4", "logging=off"),
    # In float64 each takes its own way through the global batch of 16: at once, 8 a rank, 4 times 2 a rank.
    "single fp64": (1, "strategy=single", "precision=fp64", "logging=off"),
    "fsdp fp64": (2, "strategy=fsdp", "precision=fp64", "logging=off"),
    "ddp fp64": (2, "strategy=ddp", "precision=fp64", "train.micro_batch_size=2", "logging=off"),
}
"""Number of processes and further words, by the job's name."""


@pytest.fixture(scope="session")
def words_of() -> Callable[[str], tuple[str, ...]]:
    """A job's words on the command line, without those that name its folder."""
    return lambda name: (*JOB, *WORDS[name][1:])


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all processes of `make test`, each of which has a folder of its own in the session's."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def launch_folder(shared_folder: Path) -> Path:
    """Where the jobs are started."""
    folder = shared_folder / "launch"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def trained(launch_folder: Path, shared_folder: Path, pool: WorkerPool) -> Callable[[str], RunRecord]:
    """The record of a job in WORDS, started by the first test that asks for it; the one with wandb by torchrun, the
    others in the pool.

    All three ways to say where a run goes are among them: float32 jobs by `run.dir`, outside the folder they are
    started from; "single fp64" by `run.name`; the other two not at all.
    """

    def run(name: str) -> Path:
        nproc, *words = WORDS[name]
        where = []
        if name == "single fp64":
            where = ["run.name=foo"]
        elif name.endswith("fp32"):
            where = [f"run.dir={shared_folder / name.replace(' ', '_') / 'elsewhere'}"]
        launch = partial(job_in_pool, pool) if "logging=off" in words else torchrun
        done = launch(nproc, *JOB, *words, *where, cwd=launch_folder)
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.split()[-1])  # the last line: switchyard show FOLDER

    @cache
    def once(name: str) -> RunRecord:
        said = shared_folder / f"{name.replace(' ', '_')}.folder"
        with FileLock(said.with_suffix(".lock")) as lock:
            lock.acquire(f"the job {name!r} of another process of this session")
            if not said.exists():
                said.write_text(str(run(name)))
        return RunRecord(Path(said.read_text()))

    return once
