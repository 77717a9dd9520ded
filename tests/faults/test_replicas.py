"""One flipped bit on one rank is found, and named; and nothing else is."""

import pytest
import torch
from harness.layout_run import DDP, FSDP, Layout, open_layout, this_world
from harness.strategies import strategy
from harness.worker_pool import WorkerPool

from parallel.comm import Communicator
from train.failure import FAILED, JobEnds
from train.faults.replicas import CHUNK, bit_hash, check_replicas, place_multipliers

PLACES = place_multipliers(torch.device("cpu"))
MOMENT = "optimizer.exp_avg_sq.embedding.weight"
BIAS = "model.layers.1.attention.router.expert_bias_E"


def verdict_after_flip(layout: Layout, name: str, rank: int, place: int, bit: int) -> tuple[list[str], str, int]:
    """Names of what this rank holds, and what every rank is told after `rank` flipped a bit of its part."""
    world, comm = this_world(), Communicator()
    engine = open_layout(layout, world, comm)
    held = engine.weights() | engine.moments()
    check_replicas(engine, comm, 6)
    if world.rank == rank:
        local = held[name].local
        bits = local.view(-1).view({4: torch.int32, 8: torch.int64}[local.element_size()])
        bits[place] ^= 1 << bit
    with pytest.raises(JobEnds) as ended:
        check_replicas(engine, comm, 7)
    return sorted(held), str(ended.value), ended.value.code


def test_two_ranks_cannot_tell_which(pool: WorkerPool) -> None:
    for _, said, code in pool.run(2, verdict_after_flip, Layout(DDP), BIAS, 1, 0, 0):
        assert said.startswith(f"after step 7 {BIAS} differs on ranks 0, 1, and there is no telling which is right")
        assert code == FAILED


@pytest.mark.parametrize(("rank", "bit"), [(0, 52), (2, 0)])
def test_of_three_the_odd_one_is_named(rank: int, bit: int, pool: WorkerPool) -> None:
    for _, said, _ in pool.run(3, verdict_after_flip, Layout(DDP, global_batch_size=6), MOMENT, rank, -1, bit):
        assert f"{MOMENT} differs on rank {rank}, unlike on 2 other ranks" in said


def test_ranks_that_hold_none_of_it_hear_of_it_too(pool: WorkerPool) -> None:
    """Pipeline stages: one half of the model is on ranks 0 and 1, the other on 2 and 3."""
    layout = Layout(strategy("pp_ep", "pp=2", "ep=1", "dp_replicate=2"))
    told = pool.run(4, verdict_after_flip, layout, "model.embedding.weight", 1, 3, 1)
    assert "model.embedding.weight" not in told[3][0]
    assert {said.split(":")[0] for _, said, _ in told} == {
        "after step 7 model.embedding.weight differs on ranks 0, 1, and there is no telling which is right"
    }


def test_a_shard_of_one_rank_has_no_copy(pool: WorkerPool) -> None:
    """What FSDP shares out is compared with nothing; the routers' biases are on all ranks."""
    names, said, _ = pool.run(2, verdict_after_flip, Layout(FSDP), BIAS, 1, 0, 0)[0]
    assert BIAS in said
    assert "more)" not in said
    assert len(names) > 1


def operations(layout: Layout) -> set[str]:
    """What ranks tell each other in a comparison that finds nothing."""
    comm = Communicator()
    engine = open_layout(layout, this_world(), comm)
    before = comm.issued.copy()
    check_replicas(engine, comm, 6)
    return {issued.operation for issued in comm.issued - before}


def test_rank_0_alone_has_the_hashes_of_all(pool: WorkerPool) -> None:
    assert pool.run(2, operations, Layout(DDP)) == [{"gather_object", "broadcast_object"}] * 2


def hashed(tensor: torch.Tensor) -> int:
    return int(bit_hash(tensor, PLACES))


def test_every_bit_of_a_tensor_counts() -> None:
    """Any bit of any element, elements that change places, and parts beyond the first chunk."""
    generator = torch.Generator().manual_seed(0)
    for dtype, bits_dtype, bits in ((torch.bfloat16, torch.int16, 16), (torch.float32, torch.int32, 32)):
        tensor = torch.randn(3, 5, generator=generator).to(dtype)
        expected = hashed(tensor)
        assert hashed(tensor.clone()) == expected
        assert hashed(tensor.T.contiguous()) != expected
        seen = {expected}
        for element in range(tensor.numel()):
            for bit in range(bits):
                flipped = tensor.clone()
                flipped.view(-1).view(bits_dtype)[element] ^= (1 << bit) - (1 << bits if bit == bits - 1 else 0)
                seen.add(hashed(flipped))
        assert len(seen) == 1 + tensor.numel() * bits
    long = torch.zeros(2 * CHUNK + 5)
    places = [0, CHUNK - 1, CHUNK, 2 * CHUNK + 4]
    hashes = set()
    for place in places:
        long[place] = 1.0
        hashes.add(hashed(long))
        long[place] = 0.0
    assert len(hashes) == len(places)


def test_numbers_that_are_equal_and_bits_that_are_not() -> None:
    assert hashed(torch.tensor([0.0])) != hashed(torch.tensor([-0.0]))
    nan = torch.tensor([float("nan")])
    assert hashed(nan) == hashed(nan.clone())
    assert hashed(torch.empty(0, 4)) == 0
