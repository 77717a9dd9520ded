"""What a step says between ranks is what the config predicts, to the byte, and what traffic.json records.

test_parity.py and test_parity_matrix.py compare measurement and prediction in each of their cases. Here every
strategy's is also on record, so that a change of communication shows in a diff. One that is meant is recorded by

    PYTHONPATH=.:tests python tests/parallel/test_traffic.py
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from harness.layout_run import BF16, DOCUMENTS, MODEL, MODEL_ALL_OPTIONS, Layout, run_layout
from harness.predicted_traffic import predicted_traffic
from harness.strategies import NAMES, strategy
from harness.worker_pool import WorkerPool

from parallel.comm import Issued
from parallel.comm_kind import CommKind
from parallel.config import OverlapConfig
from parallel.traffic.tally import Channel, Traffic

RECORD = Path(__file__).with_name("traffic.json")
EIGHT_EXPERTS = replace(MODEL, moe=replace(MODEL.moe, n_routed=8))
RANKS = {"single": 1, "pp_fsdp_tp_ep": 8}
"""Of the others: 2 for each dimension that they divide."""


def recorded(name: str) -> tuple[int, Layout]:
    """Ranks and layout: several micro-batches, so that what is said once per step shows as such."""
    chosen = strategy(name)
    n_ranks = RANKS.get(name, 4 if "_" in name or name == "hsdp" else 2)
    micro_batch_size = 2 if chosen.pp == 1 else None  # pipelines choose
    return n_ranks, Layout(
        chosen, model=EIGHT_EXPERTS, global_batch_size=16, micro_batch_size=micro_batch_size, steps=1, eval_sequences=4
    )


RECORDED = {name: recorded(name) for name in NAMES}


def options(name: str, *words: str, **fields: Any) -> Layout:
    """One step of strategy `name` and `words`, with everything that a router can do."""
    layout = Layout(strategy(name, *words), model=MODEL_ALL_OPTIONS, batching=DOCUMENTS, global_batch_size=16, steps=1)
    return replace(layout, **fields)


FURTHER = {
    "recomputed_selective": (4, options("hsdp_ep", "recompute=selective")),
    "recomputed_full": (4, options("fsdp_tp", "recompute=full", micro_batch_size=4)),
    "fsdp_bf16": (2, options("fsdp", precision=BF16)),
    "zero1_bf16": (2, options("zero1", precision=BF16)),
    "experts_split_twice": (4, options("tp_ep", "ep=2", "etp=2")),
    "several_in_flight": (4, options("pp_fsdp", "schedule=gpipe", overlap=OverlapConfig(param_prefetch=2))),
}


def run(pool: WorkerPool, world_size: int, layout: Layout) -> tuple[Traffic, Traffic]:
    """Of all ranks: measured, predicted."""
    outcomes = pool.run(world_size, run_layout, layout)
    measured = Traffic.total(outcome.traffic for outcome in outcomes)
    return measured, predicted_traffic(layout, world_size, int(outcomes[0].dropped[-1]))


def written(traffic: Traffic) -> dict[str, str]:
    """As it is in the file."""
    return {
        f"{kind} {operation} over {size}": f"{calls} calls, {n_bytes} bytes"
        for kind, operation, size, calls, n_bytes in traffic.rows()
    }


@pytest.mark.parametrize("name", RECORDED)
def test_strategy(name: str, pool: WorkerPool) -> None:
    measured, predicted = run(pool, *RECORDED[name])
    assert written(measured) == written(predicted)
    assert written(measured) == json.loads(RECORD.read_text())[name]


@pytest.mark.parametrize("name", FURTHER)
def test_option(name: str, pool: WorkerPool) -> None:
    measured, predicted = run(pool, *FURTHER[name])
    assert written(measured) == written(predicted)


def test_the_record_has_every_strategy_and_no_other() -> None:
    assert list(json.loads(RECORD.read_text())) == list(RECORDED)


def test_calls_of_one_channel_add_up() -> None:
    small, large = Issued(CommKind.dp, "all_reduce", 4, 8), Issued(CommKind.dp, "all_reduce", 4, 100)
    one = Traffic.of([(small, 3), (large, 1), (Issued(CommKind.pp, "receive", 2, 0), 2)])
    assert one.rows() == [("dp", "all_reduce", 4, 4, 124), ("pp", "receive", 2, 2, 0)]
    assert Traffic.total([one, one]) == one.times(2)
    assert Traffic.total([one, one]).n_bytes[Channel(CommKind.dp, "all_reduce", 4)] == 248


if __name__ == "__main__":
    _pool = WorkerPool()
    _record = {name: written(run(_pool, *case)[0]) for name, case in RECORDED.items()}
    RECORD.write_text(json.dumps(_record, indent=2) + "\n")
    _pool.close()
