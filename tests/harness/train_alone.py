"""`python -m train words…` as one process, in a worker of the pool: a job costs its steps, and no interpreter."""

import os

import torch

from train.__main__ import main


def train_alone(*words: str) -> None:
    """To be given to `WorkerPool.run(1, …)`. A refused job is a worker that died with exit code 2."""
    stand_alone()
    main(list(words))


def stand_alone() -> None:
    """The worker's group goes, and the job makes its own, as one that nobody launched."""
    torch.distributed.destroy_process_group()
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        del os.environ[name]
