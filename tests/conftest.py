"""What every test can count on: the import path, one worker pool a session, and which tests need asking for."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch, and for all that is started from here: where several processes have two threads each on two cores, most
# of their time goes to waiting for each other's.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

TESTS = Path(__file__).resolve().parent
# The pool hands this path to its workers, which is how they find the module a test function lives in.
sys.path[:0] = [folder for folder in (str(TESTS.parent), str(TESTS)) if folder not in sys.path]

from harness.worker_pool import WorkerPool  # noqa: E402


@pytest.fixture(scope="session")
def pool() -> Iterator[WorkerPool]:
    """Gloo processes shared by the whole session; `pool.run(2, function)`."""
    shared = WorkerPool()
    yield shared
    shared.close()


@pytest.fixture
def older_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every GPU that is asked about says that it is an A100."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "An Older GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))


LONGEST = (
    "test_readme.py",
    "test_readme_story.py",
    "test_parity.py",
    "test_bench.py",
    "test_engines.py",
    "test_life_and_death.py",
    "test_verify.py",
    "test_wandb_online.py",
    "test_resume.py",
    "test_engines_state.py",
    "test_nodes.py",
    "test_sweep.py",
)
"""Files that take longest. Where processes share the files (`make test`), they are begun first, so that all end
together; a file goes to one process, and its tests may build on each other."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip `gpu` tests where there is no device, and leave `soak` tests out unless -m speaks of them."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))  # stable
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    if "soak" not in config.option.markexpr:
        soak = [item for item in items if item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=soak)
        items[:] = [item for item in items if item not in soak]
