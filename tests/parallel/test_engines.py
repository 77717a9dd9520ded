"""Engines of other libraries against the native single process, in float32 (DeepSpeed knows no float64).

Not in the session's pool: these libraries keep state in their modules, which must not leak into other tests.
"""

import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from harness.layout_run import (
    DOCUMENTS,
    ENGINES,
    FP32,
    MODEL_ALL_OPTIONS,
    Layout,
    Outcome,
    merged,
    merged_gradients,
    run_layout,
)
from harness.worker_pool import WorkerPool

from parallel.config import EngineName


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    pool = WorkerPool()
    yield pool
    pool.close()


def run_engine(layout: Layout) -> Outcome:
    """In one worker; then the library forgets the process group, which ends with the case."""
    os.environ["LOCAL_WORLD_SIZE"] = os.environ["WORLD_SIZE"]  # as torchrun would say
    outcome = run_layout(layout)
    if layout.strategy.engine is EngineName.deepspeed:
        import deepspeed

        deepspeed.comm.destroy_process_group()
    return outcome


LAYOUT = Layout(precision=FP32, model=MODEL_ALL_OPTIONS, batching=DOCUMENTS, micro_batch_size=2, steps=4)


@pytest.fixture(scope="module")
def reference(pool: WorkerPool) -> Outcome:
    """One process that sees in a micro-batch what two ranks see together."""
    return pool.run(1, run_layout, replace(LAYOUT, micro_batch_size=4))[0]


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_equals_one_process_in_float32(name: str, pool: WorkerPool, reference: Outcome) -> None:
    outcomes = pool.run(2, run_engine, replace(LAYOUT, strategy=ENGINES[name]))
    for outcome in outcomes:
        np.testing.assert_allclose(outcome.losses, reference.losses, rtol=0, atol=1e-5)
        np.testing.assert_allclose(outcome.evals, reference.evals, rtol=0, atol=1e-5)
        np.testing.assert_allclose(outcome.router_losses, reference.router_losses, rtol=0, atol=1e-5)
        np.testing.assert_allclose(outcome.grad_norms, reference.grad_norms, rtol=1e-4)
        assert outcome.chosen == reference.chosen
        assert outcome.dropped == reference.dropped
    expected, got = merged_gradients([reference]), merged_gradients(outcomes)
    assert got.keys() == expected.keys()
    largest = max(np.linalg.norm(gradient) for gradient in expected.values())
    for key, gradient in expected.items():
        print(name, key, np.linalg.norm(got[key] - gradient) / largest)
        assert np.linalg.norm(got[key] - gradient) < 1e-6 * largest, key
    weights, expected = merged(outcomes), merged([reference])
    assert weights.keys() == expected.keys()
    for key, weight in expected.items():
        print(name, key, np.linalg.norm(weights[key] - weight) / np.linalg.norm(weight))
