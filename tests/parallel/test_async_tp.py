"""overlap.async_tp: sequences travel in chunks behind the products of other chunks, to the same numbers."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from harness.layout_run import (
    DOCUMENTS,
    MODEL,
    MODEL_ALL_OPTIONS,
    MODEL_MLA_SOFTMAX,
    Layout,
    merged,
    merged_gradients,
    run_layout,
)
from harness.predicted_traffic import predicted_traffic
from harness.recorded_step import PRODUCT, record_step, travelled
from harness.strategies import strategy
from harness.worker_pool import WorkerPool

from parallel.comm_kind import CommKind
from parallel.config import OverlapConfig, Recompute
from parallel.pipeline.schedules import ScheduleName
from parallel.tensor_parallel.chunks import in_chunks, in_sequence
from parallel.traffic.tally import Traffic

WHOLE = OverlapConfig(reshard_after_forward=False)
EIGHT = replace(MODEL, moe=replace(MODEL.moe, n_routed=8))
DEEP = replace(EIGHT, n_layers=9)
SEQUENCES = ("all_gather", "reduce_scatter")


def chunks(n: int) -> OverlapConfig:
    return replace(WHOLE, async_tp=n)


def test_a_chunk_is_of_every_rank() -> None:
    """Three ranks with four tokens each, in two chunks."""
    x_BSF = torch.arange(12).view(1, 12, 1)
    first, second = in_chunks(x_BSF, 3, 2)
    assert first.flatten().tolist() == [0, 1, 4, 5, 8, 9]
    assert torch.equal(in_sequence([first, second], 3), x_BSF)
    assert in_chunks(x_BSF, 3, 1)[0].tolist() == in_sequence([x_BSF], 3).tolist() == x_BSF.tolist()


def test_sequences_travel_behind_products(pool: WorkerPool) -> None:
    """Of C chunks all but one of each way there and back, forward and backward; whole, none."""
    n_chunks, layout = 4, Layout(strategy("tp"), chunks(4), model=DEEP, micro_batch_size=8)
    for events in pool.run(2, record_step, layout):
        sequences = travelled(events, CommKind.tp, *SEQUENCES)
        behind = Counter(PRODUCT in sequence.behind for sequence in sequences)
        # Two exchanges a layer for attention and two for the feed-forward, there and back; beside them the embedding's,
        # the head's and the choices of experts, whole.
        n_exchanges = 2 * 4 * DEEP.n_layers
        assert behind[True] >= n_exchanges * (n_chunks - 1)
        assert behind.total() >= n_exchanges * n_chunks
    for events in pool.run(2, record_step, replace(layout, overlap=WHOLE)):
        assert not any(PRODUCT in sequence.behind for sequence in travelled(events, CommKind.tp, *SEQUENCES))


def with_recompute(name: str, what: Recompute) -> Layout:
    return Layout(replace(strategy(name), recompute=what), chunks(2), model=MODEL_ALL_OPTIONS, batching=DOCUMENTS)


CASES = {
    "tp": (2, Layout(strategy("tp"), chunks(4), model=EIGHT, micro_batch_size=4, steps=2)),
    "documents": (2, Layout(strategy("tp"), chunks(2), model=MODEL_ALL_OPTIONS, batching=DOCUMENTS)),
    "mla_recomputed": (
        2,
        replace(with_recompute("tp", Recompute.selective), model=MODEL_MLA_SOFTMAX, steps=2),
    ),
    "pp_tp_zbv": (
        4,
        Layout(replace(strategy("pp_tp"), schedule=ScheduleName.zbv), chunks(2), model=DEEP, steps=2),
    ),
}
LONG = {
    "one_head_each": (4, Layout(strategy("tp"), chunks(2), model=MODEL_ALL_OPTIONS, batching=DOCUMENTS)),
    "a_token_a_chunk": (4, Layout(strategy("tp"), chunks(4), model=MODEL_MLA_SOFTMAX)),
    "recomputed": (2, with_recompute("tp", Recompute.full)),
    "recomputed_selective": (2, with_recompute("tp", Recompute.selective)),
    "fsdp_tp_recomputed": (4, with_recompute("fsdp_tp", Recompute.full)),
    "fsdp_tp": (4, Layout(strategy("fsdp_tp"), chunks(4), model=EIGHT)),
    "tp_ep": (4, Layout(strategy("tp_ep"), chunks(2), model=EIGHT)),
    "side_by_side": (
        4,
        Layout(strategy("tp_ep"), replace(chunks(4), forward_backward=True), model=EIGHT, micro_batch_size=1),
    ),
    "behind_shared": (4, Layout(strategy("tp_ep"), replace(chunks(4), shared_experts=True), model=EIGHT)),
    "behind_shared_recomputed": (
        4,
        Layout(strategy("tp_ep", "recompute=full"), replace(chunks(2), shared_experts=True), model=EIGHT),
    ),
    "behind_shared_etp_recomputed": (
        2,
        Layout(strategy("tp", "etp=2", "recompute=selective"), replace(chunks(2), shared_experts=True), model=EIGHT),
    ),
    "behind_shared_zbv": (
        4,
        Layout(
            replace(strategy("pp_tp"), schedule=ScheduleName.zbv, ep=2),
            replace(chunks(2), shared_experts=True),
            model=DEEP,
            global_batch_size=16,
        ),
    ),
    "etp": (2, Layout(strategy("tp", "etp=2"), chunks(2), model=EIGHT)),
    "pp_fsdp_tp_ep": (8, Layout(strategy("pp_fsdp_tp_ep"), chunks(2), model=DEEP, global_batch_size=16)),
    **{
        f"pp_tp_{name.value}": (
            4,
            Layout(replace(strategy("pp_tp"), schedule=name), chunks(2), model=DEEP, global_batch_size=16, steps=2),
        )
        for name in ScheduleName
    },
}


@pytest.mark.parametrize("name", [*CASES, *(pytest.param(name, marks=pytest.mark.soak) for name in LONG)])
def test_numbers_are_those_of_whole_sequences(name: str, pool: WorkerPool) -> None:
    world_size, layout = (CASES | LONG)[name]
    whole = replace(layout, overlap=replace(layout.overlap, async_tp=1))
    outcomes, expected = (pool.run(world_size, run_layout, which) for which in (layout, whole))
    for outcome, other in zip(outcomes, expected, strict=True):
        np.testing.assert_allclose(outcome.losses, other.losses, rtol=0, atol=1e-12)
        np.testing.assert_allclose(outcome.evals, other.evals, rtol=0, atol=1e-12)
        np.testing.assert_allclose(outcome.grad_norms, other.grad_norms, rtol=0, atol=1e-12)
        assert outcome.dropped == other.dropped
    for found, wanted in (
        (merged_gradients(outcomes), merged_gradients(expected)),
        (merged(outcomes), merged(expected)),
    ):
        assert found.keys() == wanted.keys()
        for key, array in wanted.items():
            np.testing.assert_allclose(found[key], array, rtol=0, atol=1e-12, err_msg=key)
    traffic, before = (Traffic.total(outcome.traffic for outcome in some) for some in (outcomes, expected))
    assert traffic.rows() == predicted_traffic(layout, world_size, int(outcomes[0].dropped[-1])).rows()
    assert traffic.calls.total() > before.calls.total()
    if layout.strategy.recompute is Recompute.none:  # else a part is recomputed to its end
        assert traffic.n_bytes == before.n_bytes
