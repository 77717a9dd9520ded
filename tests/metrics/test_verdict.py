"""What bounds a run, by made-up steps; and that what it advises can be typed."""

import re

import pytest

from conf.compose import compose
from conf.keys import Keys
from conf.schema import JobConfig
from train.metrics.breakdown import BUCKETS, COMMUNICATION, mean_breakdown
from train.metrics.verdict import ADVICE, OPTIMIZER, WAIT, TracedStep, judge

COMPUTE = {"compute_fwd": 2.5, "compute_bwd": 5.0, "compute_opt": 0.5}


def step(**waits: float) -> dict[str, float]:
    buckets = COMPUTE | {name.replace("__", "/"): seconds for name, seconds in waits.items()}
    assert set(buckets) <= set(BUCKETS)
    return buckets | {"wall": sum(buckets.values())}


@pytest.mark.parametrize(
    ("wait", "bound"),
    [
        ("data_wait", "input"),
        ("sync_wait", "straggler"),
        ("bubble", "bubble"),
        ("log", "logging"),
        ("other", "unnamed time"),
        *((f"exposed_comm__{kind}", f"communication ({kind})") for kind in COMMUNICATION),
    ],
)
def test_a_wait_of_some_size_is_named(wait: str, bound: str) -> None:
    verdict = judge(step(**{wait: 2.0}))
    assert verdict is not None
    assert (verdict.bound, verdict.share) == (bound, pytest.approx(0.2))
    assert verdict.sentence.startswith(f"{bound}, 20% of a step; try ")
    just_below = judge(step(**{wait: 8.0 * WAIT / (1 - WAIT) * 0.99}))
    assert just_below is not None
    assert just_below.bound == "compute"


def test_the_largest_wait_is_the_one() -> None:
    verdict = judge(step(data_wait=2.0, bubble=3.0, exposed_comm__ep=2.9))
    assert verdict is not None
    assert verdict.bound == "bubble"


def test_without_a_trace_an_optimizer_of_some_size_means_memory() -> None:
    verdict = judge(
        {"compute_fwd": 1.0, "compute_bwd": 2.0, "compute_opt": 3.1 * OPTIMIZER / (1 - OPTIMIZER), "wall": 5}
    )
    assert verdict is not None
    assert verdict.bound == "memory"
    verdict = judge(
        {"compute_fwd": 1.0, "compute_bwd": 2.0, "compute_opt": 2.9 * OPTIMIZER / (1 - OPTIMIZER), "wall": 5}
    )
    assert verdict is not None
    assert verdict.bound == "compute"


@pytest.mark.parametrize(
    ("host_gaps_s", "kernel_s", "bound", "share"),
    [
        (0.2, {"dense_gemm": 0.3, "expert_gemm": 0.3, "attention": 0.1, "copy_cast": 0.1}, "host", 0.2),
        (0.0, {"dense_gemm": 0.3, "expert_gemm": 0.3, "attention": 0.1, "copy_cast": 0.3}, "compute", 0.7),
        (0.0, {"dense_gemm": 0.4, "elementwise": 0.3, "optimizer": 0.15, "communication": 0.1}, "memory", 0.45),
    ],
)
def test_a_trace_tells_what_compute_is(
    host_gaps_s: float, kernel_s: dict[str, float], bound: str, share: float
) -> None:
    verdict = judge(step(), TracedStep(1.0, 0.2, host_gaps_s, 100, kernel_s))
    assert verdict is not None
    assert (verdict.bound, verdict.share) == (bound, pytest.approx(share))


def test_a_device_that_idles_in_a_wait_with_a_name_does_not_wait_for_launches() -> None:
    verdict = judge(step(data_wait=2.0), TracedStep(1.0, 0.25, 0.25, 1, {"copy_cast": 0.7}))
    assert verdict is not None
    assert verdict.bound == "input"


def test_nothing_divided_is_not_judged() -> None:
    assert judge(mean_breakdown([])) is None
    assert TracedStep.read(None) is None
    assert TracedStep.read({"source": "host ranges", "span_s": 1.0}) is None


def test_advice_can_be_typed() -> None:
    """Every key=value in it composes, and every key that is named alone exists."""
    keys, typed = Keys.of(JobConfig), 0
    for advice in ADVICE.values():
        for word in re.findall(r"[a-z_.]+=[\w.]+", advice):
            compose([word])
            typed += 1
        for key in re.findall(r"\b(?:train|strategy|overlap|measure)\.[a-z_]+", advice):
            assert key in keys.types, key
    assert typed > 10
