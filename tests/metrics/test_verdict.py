"""What bounds a run, by made-up steps; and that what it advises can be typed."""

import re
from typing import Any

import pytest
import yaml

from conf.compose import compose
from conf.keys import Keys
from conf.schema import JobConfig
from train.metrics.breakdown import BUCKETS, COMMUNICATION, mean_breakdown
from train.metrics.verdict import ADVICE, OPTIMIZER, WAIT, TracedStep, Verdict, judge

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
    assert verdict.sentence({}).startswith(f"{bound}, 20% of a step; try {ADVICE[bound][0].text}")
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
        (0.0, {"dense_gemm": 0.4, "elementwise": 0.3, "optimizer": 0.15}, "memory (activations)", 0.45),
        (0.0, {"dense_gemm": 0.4, "elementwise": 0.2, "copy_cast": 0.15, "optimizer": 0.1}, "memory", 0.45),
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


def test_waits_of_middling_size_are_named_together() -> None:
    verdict = judge(
        {"compute_fwd": 0.6, "exposed_comm/ep": 0.05, "exposed_comm/fsdp": 0.04, "sync_wait": 0.08, "bubble": 0.07}
        | {"wall": 0.84}
    )
    assert verdict is not None
    assert (verdict.bound, verdict.share) == ("communication (ep)", pytest.approx(0.09 / 0.84))


def test_a_host_that_is_slow_only_while_it_is_recorded_bounds_nothing() -> None:
    trace = TracedStep(1.3, 0.3, 0.3, 100, {"dense_gemm": 0.9})  # 0.3 s longer for being traced
    verdict = judge({"compute_fwd": 1.0, "wall": 1.0}, trace)
    assert verdict is not None
    assert verdict.bound == "compute"


@pytest.mark.parametrize(
    ("bound", "settings", "tried"),
    [
        ("input", {"overlap": {"data": 2}}, "overlap.data=4"),
        ("input", {"overlap": {"data": 4}}, "text tokenised beforehand (switchyard tokenize)"),
        ("communication (fsdp)", {"overlap": {"name": "default"}}, "overlap=max"),
        ("communication (fsdp)", {"overlap": {"name": "max"}}, "a larger train.global_batch_size"),
        ("bubble", {"strategy": {"schedule": "zbv"}}, "a smaller train.micro_batch_size: more micro-batches"),
        ("compute", {"strategy": {"recompute": "full"}}, "strategy.recompute=none"),
    ],
)
def test_what_is_in_effect_is_not_advised(bound: str, settings: dict[str, Any], tried: str) -> None:
    assert Verdict(bound, 0.5).sentence(settings) == f"{bound}, 50% of a step; try {tried}"


def test_advice_can_be_typed_and_then_is_in_effect() -> None:
    """Every key=value in it composes, and is not advised again; every key that is named alone exists."""
    keys, typed = Keys.of(JobConfig), 0
    for bound, advice in ADVICE.items():
        assert not advice[-1].key, f"{bound}: there is always something to try"
        for one in advice:
            for word in re.findall(r"[a-z0-9_.]+=[\w.]+", one.text):
                plain = yaml.safe_load(compose([word]).yaml)
                if one.key:
                    group, key = one.key.split(".")
                    assert one.in_effect(plain[group][key]), word
                typed += 1
            for key in re.findall(r"\b(?:train|strategy|overlap|measure)\.[a-z0-9_]+", one.text):
                assert key in keys.types, key
    assert typed > 8
