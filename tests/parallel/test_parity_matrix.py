"""Every strategy, as its YAML file has it, against one process: each two values of the factors below meet in some case.
`make soak`."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from harness.covering import Case, covering_cases, pairs_of
from harness.layout_run import (
    DOCUMENTS,
    FP32,
    GQA,
    MLA,
    MODEL,
    Layout,
    Outcome,
    assert_routed_alike,
    merged,
    merged_gradients,
    run_layout,
)
from harness.predicted_traffic import predicted_traffic
from harness.strategies import NAMES, overlap, strategy
from harness.worker_pool import WorkerPool

from models.config import Balance, ExpertBackend, ModelConfig, MoEConfig, RoutingChoice, ScoreFunction
from models.experts import STACKED
from models.parameter_shapes import parameter_shapes
from parallel.check import check_layout
from parallel.config import OverlapConfig, Recompute, Reduction, StrategyConfig
from parallel.expert_parallel.build import DispatcherName, RowRoom
from parallel.mesh import Degrees
from parallel.pipeline.schedules import ScheduleName
from parallel.traffic.tally import Traffic
from train.config import TrainConfig

pytestmark = pytest.mark.soak

MOE = replace(MODEL.moe, n_routed=8)
BASE = replace(MODEL, n_layers=4, moe=MOE)
ATTENTIONS = {
    "gqa": GQA,
    "gqa_one_kv_head": replace(GQA, n_kv_heads=1, bias=True, qk_norm=True),
    "mla": replace(MLA, q_lora_rank=0),
    "mla_q_lora": replace(MLA, bias=True),
}
ROUTINGS: dict[str, MoEConfig] = {
    "bias": MOE,
    "softmax": replace(MOE, score=ScoreFunction.softmax, normalise_weights=False, n_shared=2),
    "groups": replace(MOE, n_groups=4, groups_per_token=2),
    "capacity": replace(MOE, capacity_factor=0.9),
    "losses": replace(MOE, sequence_loss_weight=0.02, batch_loss_weight=0.03, z_loss_weight=0.01, capacity_factor=1.0),
    "top1": replace(MOE, top_k=1, normalise_weights=False),  # normalised, the one weight is 1: nothing to learn
    "unbalanced": replace(MOE, balance=Balance.none, bias_update_rate=0.0, n_shared=0),
    "balanced": replace(MOE, routing=RoutingChoice.balanced, balance=Balance.none, bias_update_rate=0.0),
    "dense": MOE,
}
DENSE_LAYERS = {"top1": 0, "dense": BASE.n_layers}
OVERLAPS = {name: overlap(name) for name in ("none", "default", "max")}
OVERLAPS["parts"] = replace(OVERLAPS["max"], dispatch_chunks=2)
WORLDS = {
    **dict.fromkeys(NAMES, (4,)),
    "single": (1,),
    "ddp": (1, 2, 4),
    "fsdp": (1, 2, 4),
    "zero1": (2, 4),
    "tp": (2, 4),
    "ep": (2, 4),
    "pp": (2,),
    "fsdp_ep": (2, 4),
    "pp_fsdp_ep": (4, 4, 4, 8),
    "pp_fsdp_tp_ep": (8,),
}
"""Ranks, in turn."""
STRATEGIES = {name: strategy(name) for name in NAMES}
SCHEDULES = [schedule.value for schedule in ScheduleName]
SPLIT_BACKWARD = ("interleaved_zero_bubble", "zbv", "dualpipev", "dualpipe")

FACTORS = {
    "strategy": NAMES,
    "routing": tuple(ROUTINGS),
    "schedule": ("1f1b", *(name for name in SCHEDULES if name != "1f1b")),
    "attention": tuple(ATTENTIONS),
    "recompute": tuple(what.value for what in Recompute),
    "overlap": tuple(OVERLAPS),
    "micro_batch": ("default", "1"),
    "dispatcher": ("all_to_all", "all_gather"),  # of symmetric_memory see test_symmetric_memory.py
    "rows": tuple(room.value for room in RowRoom),
    "experts": ("whole", "split", "copied"),  # split: by width too; copied: divided over some of the ranks only
}


def allowed(case: Case) -> bool:
    """What the product would not refuse; of a case that is not complete, what is there."""
    get = case.get
    split_backward = get("schedule") in SPLIT_BACKWARD
    if split_backward and get("recompute", "none") != "none":
        return False
    if "strategy" not in case:
        return get("experts", "whole") == "whole" or get("routing") != "dense"
    chosen = STRATEGIES[case["strategy"]]
    if chosen.pp == 1 and get("schedule", "1f1b") != "1f1b":
        return False
    if chosen.ep == 1 and get("dispatcher", "all_to_all") != "all_to_all":
        return False
    room_for_all = get("rows") == "static"
    if room_for_all and chosen.ep == 1 and get("routing", "capacity") not in ("capacity", "losses"):
        return False
    if room_for_all and chosen.ep != 1 and get("dispatcher", "all_gather") != "all_gather":
        return False
    if get("overlap") == "parts" and (chosen.ep == 1 or get("dispatcher", "all_to_all") != "all_to_all"):
        return False
    if get("overlap") == "parts" and get("experts") == "split":
        return False
    if (get("experts") == "split" and chosen.tp == 1) or (get("experts") == "copied" and chosen.ep != -1):
        return False
    if get("routing") == "dense" and (chosen.ep != 1 or get("experts", "whole") != "whole"):
        return False
    if chosen.reduction is not Reduction.shard:
        return True
    return not (split_backward and get("overlap", "max") not in ("max", "parts"))


CASES = covering_cases(FACTORS, allowed)


def world_of(number: int) -> int:
    """Ranks of case `number`: its strategy's worlds in turn, or enough for two copies of the experts."""
    name = CASES[number]["strategy"]
    if CASES[number]["experts"] == "copied":
        return 4 * STRATEGIES[name].pp
    before = sum(case["strategy"] == name for case in CASES[:number])
    return WORLDS[name][before % len(WORLDS[name])]


def model_of(case: Case) -> ModelConfig:
    """By its routing and its attention."""
    routing = case["routing"]
    n_dense_layers = DENSE_LAYERS.get(routing, BASE.n_dense_layers)
    return replace(BASE, attention=ATTENTIONS[case["attention"]], moe=ROUTINGS[routing], n_dense_layers=n_dense_layers)


def layout_of(case: Case, world_size: int) -> Layout:
    """With documents, as most data has them."""
    chosen = STRATEGIES[case["strategy"]]
    words = {
        "recompute": Recompute(case["recompute"]),
        "schedule": ScheduleName(case["schedule"]),
        "dispatcher": DispatcherName(case["dispatcher"]),
        "rows": RowRoom(case["rows"]),
    }
    if case["experts"] == "split":
        words["etp"] = Degrees.resolve(chosen, world_size).tp
    if case["experts"] == "copied":
        words["ep"] = 2
    return Layout(
        replace(chosen, **words),
        OVERLAPS[case["overlap"]],
        model=model_of(case),
        batching=DOCUMENTS,
        global_batch_size=16,
        micro_batch_size=1 if case["micro_batch"] == "1" else None,
        eval_sequences=16,
        steps=2,
    )


@pytest.fixture(scope="module")
def references() -> dict[str, Outcome]:
    return {}


def reference_of(layout: Layout, world_size: int, pool: WorkerPool, known: dict[str, Outcome]) -> Outcome:
    """The same model on one process; in the same micro-batches if it has a loss that is one of a micro-batch."""
    degrees = Degrees.resolve(layout.strategy, world_size)
    train = TrainConfig(global_batch_size=layout.global_batch_size, micro_batch_size=layout.micro_batch_size)
    whole = train.micro_batch(degrees.dp, degrees.pp) * degrees.dp
    micro_batch_size = whole if layout.model.moe.batch_loss_weight else None
    single = replace(layout, strategy=StrategyConfig(), overlap=OverlapConfig(), micro_batch_size=micro_batch_size)
    key = repr(single)
    if key not in known:
        (known[key],) = pool.run(1, run_layout, single)
    return known[key]


def logical_names(model: ModelConfig) -> set[str]:
    """Of all parameters, experts one by one."""
    names = set()
    for name in parameter_shapes(model):
        path, _, leaf = name.rpartition(".")
        if path.endswith(".routed"):
            leaves = [part.replace("_E", "_") for part in STACKED.get(leaf, (leaf,))]
            names |= {f"{path}.{expert}.{part}" for expert in range(model.moe.n_routed) for part in leaves}
        else:
            names.add(name)
    return names


def assert_gradients_equal(outcomes: list[Outcome], reference: Outcome, model: ModelConfig, relative: float) -> None:
    """Every parameter's, each to a part of its own norm."""
    gradients, expected = merged_gradients(outcomes), merged_gradients([reference])
    assert {name.partition(".")[2] for name in gradients} == logical_names(model)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        assert np.linalg.norm(gradient) > 0, name
        assert np.linalg.norm(gradients[name] - gradient) <= relative * np.linalg.norm(gradient), name


@pytest.mark.parametrize("number", range(len(CASES)), ids=["-".join(case.values()) for case in CASES])
def test_layout_equals_one_process(number: int, pool: WorkerPool, references: dict[str, Outcome]) -> None:
    case, world_size = CASES[number], world_of(number)
    layout = layout_of(case, world_size)
    degrees = Degrees.resolve(layout.strategy, world_size)
    train = TrainConfig(global_batch_size=16, micro_batch_size=layout.micro_batch_size)
    n_micro_batches = train.micro_batches(degrees.dp, degrees.pp)
    layout.overlap.check()
    layout.model.check()
    check_layout(layout.model, layout.strategy, layout.overlap, degrees, n_micro_batches, 16)

    reference = reference_of(layout, world_size, pool, references)
    outcomes = pool.run(world_size, run_layout, layout)
    for outcome in outcomes:
        np.testing.assert_allclose(outcome.losses, reference.losses, rtol=0, atol=1e-12)
        np.testing.assert_allclose(outcome.router_losses, reference.router_losses, rtol=0, atol=1e-12)
        assert outcome.dropped == reference.dropped
        assert_routed_alike(outcome, reference, 1e-12)
        np.testing.assert_array_equal(outcome.chosen, reference.chosen)
        np.testing.assert_allclose(outcome.evals, reference.evals, rtol=0, atol=1e-12)
        np.testing.assert_allclose(outcome.grad_norms, reference.grad_norms, rtol=0, atol=1e-12)
    assert_gradients_equal(outcomes, reference, layout.model, 1e-10)
    weights, expected = merged(outcomes), merged([reference])
    assert weights.keys() == expected.keys()
    for key, weight in expected.items():
        np.testing.assert_allclose(weights[key], weight, rtol=0, atol=1e-11, err_msg=key)
    traffic = Traffic.total(outcome.traffic for outcome in outcomes)
    assert traffic.rows() == predicted_traffic(layout, world_size, int(reference.dropped[-1])).rows()


def test_cases_cover_what_can_meet() -> None:
    met = set().union(*map(pairs_of, CASES))
    assert len(CASES) >= 60
    for a, b in combinations(FACTORS, 2):
        for x in FACTORS[a]:
            for y in FACTORS[b]:
                assert ((a, x), (b, y)) in met or not can_meet({a: x, b: y})


def can_meet(case: Case) -> bool:
    """By trying all completions."""
    name = next((name for name in FACTORS if name not in case), None)
    if not allowed(case):
        return False
    return name is None or any(can_meet(case | {name: value}) for value in FACTORS[name])


GROUPED = replace(BASE, expert_backend=ExpertBackend.grouped_mm)


@pytest.mark.parametrize(("name", "world_size"), [("ep", 2), ("fsdp_ep", 4), ("tp_ep", 4)])
def test_grouped_mm_equals_one_process_in_float32(name: str, world_size: int, pool: WorkerPool) -> None:
    """float64 runs the readable loop: what groups the rows on a GPU is compared here."""
    layout = Layout(strategy(name), precision=FP32, model=GROUPED, steps=1)
    (reference,) = pool.run(1, run_layout, replace(layout, strategy=StrategyConfig()))
    outcomes = pool.run(world_size, run_layout, layout)
    np.testing.assert_allclose(outcomes[0].losses, reference.losses, rtol=0, atol=1e-5)
    assert_gradients_equal(outcomes, reference, GROUPED, 1e-5)
