"""How a test runs an engine of another library: in a worker that forgets it, or as if on a GPU."""

import os
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import replace

import pytest

from harness.layout_run import DOCUMENTS, FP32, MODEL_ALL_OPTIONS, Layout, Outcome, run_layout
from harness.worker_pool import WorkerPool
from parallel.config import EngineName, StrategyConfig

# All options but biases: keys' have no gradient but noise, of which AdamW makes steps as long as any other's.
MODEL = replace(MODEL_ALL_OPTIONS, attention=replace(MODEL_ALL_OPTIONS.attention, bias=False))
LAYOUT = Layout(precision=FP32, model=MODEL, batching=DOCUMENTS, micro_batch_size=2, steps=4)


@contextmanager
def another_pool() -> Iterator[WorkerPool]:
    """For a case of other ranks: the libraries keep those of a process' first one, and count what it made. And for a
    case that fails, which ends a pool."""
    pool = WorkerPool()
    try:
        yield pool
    finally:
        pool.close()


def forget_group(*strategies: StrategyConfig) -> None:
    """DeepSpeed keeps the process group, which ends with the case."""
    if any(strategy.engine is EngineName.deepspeed for strategy in strategies):
        import deepspeed

        deepspeed.comm.destroy_process_group()


def run_engine(layout: Layout) -> Outcome:
    """run_layout for an engine of another library."""
    os.environ["LOCAL_WORLD_SIZE"] = os.environ["WORLD_SIZE"]  # as torchrun would say
    outcome = run_layout(layout)
    forget_group(layout.strategy)
    return outcome


def sampled(every_run: Set, cases: Iterable) -> list:
    """All of `cases` for `make soak`; those of `every_run` for `make test` too."""
    return [case if case in every_run else pytest.param(*_tuple(case), marks=pytest.mark.soak) for case in cases]


def _tuple(case: object) -> tuple:
    return case if isinstance(case, tuple) else (case,)


@contextmanager
def as_if_on_gpus() -> Iterator[None]:
    """Accelerate's FSDP2 is torch's, which runs on gloo as on NCCL. It chooses it on GPUs alone; here it is made
    to believe that it did."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    decide = AcceleratorState.__init__

    def decide_for_fsdp(self, *args, fsdp_plugin=None, **kwargs) -> None:
        decide(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            for state in (AcceleratorState, PartialState):
                state._shared_state["distributed_type"] = DistributedType.FSDP
            AcceleratorState._shared_state["fsdp_plugin"] = fsdp_plugin

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AcceleratorState, "__init__", decide_for_fsdp)
        yield
