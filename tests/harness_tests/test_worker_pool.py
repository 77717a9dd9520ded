"""The pool itself: that it computes, names the culprit, forgets each case, and leaves no process behind."""

import importlib
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist
from harness.worker_pool import WorkerFailure, WorkerPool

OWNER = """
import sys
sys.path[:0] = sys.argv[1:]
from harness.worker_pool import WorkerPool
from test_worker_pool import say_busy_and_sleep
pool = WorkerPool()
pool.run(4, sum, [])
print(*pool.pids(), flush=True)
pool.run(2, say_busy_and_sleep)
"""


def sum_of_ranks() -> tuple[int, float]:
    total = torch.tensor(float(dist.get_rank()))
    dist.all_reduce(total)
    return dist.get_world_size(), total.item()


def raise_on(rank: int) -> None:
    if dist.get_rank() == rank:
        raise ValueError("the odd one out")
    dist.all_reduce(torch.ones(1))


def raise_with_work_in_flight(rank: int) -> None:
    if dist.get_rank() == rank:
        work = dist.all_reduce(torch.ones(1), async_op=True)
        raise ValueError(f"gave up on {work}")
    dist.recv(torch.empty(1), src=rank)


def die_on(rank: int) -> None:
    if dist.get_rank() == rank:
        os._exit(3)
    dist.all_reduce(torch.ones(1))


def hang_on(rank: int) -> None:
    if dist.get_rank() == rank:
        time.sleep(60)
    dist.all_reduce(torch.ones(1))


def say_busy_and_sleep() -> None:
    os.write(1, b"busy\n")  # in one piece: two ranks write to one pipe
    time.sleep(60)


def state() -> dict[str, Any]:
    return {
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "draw": torch.rand(()).item(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
    }


def disturbed_state() -> dict[str, Any]:
    os.environ["LEFT_BEHIND"] = "1"
    os.environ.pop("PATH")
    os.chdir("/")
    torch.manual_seed(99)
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(2)
    return state()


def awkward_tensors(rank: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    values = torch.randn(64, generator=generator)
    values[:3] = torch.tensor([float("nan"), -0.0, float("inf")])
    return [values, values.bfloat16(), values.double().view(8, 8).T, torch.tensor([2**62 + rank]), torch.empty(0, 3)]


def send_awkward_tensors_last_rank_first() -> list[torch.Tensor]:
    time.sleep(0.2 * (dist.get_world_size() - 1 - dist.get_rank()))
    return awkward_tensors(dist.get_rank())


def same_tensor(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return tensor.dtype, tensor.shape, tensor.contiguous().view(torch.uint8).numpy().tobytes()


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_collective_spans_the_ranks_asked_for(
    pool: WorkerPool, world_size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = [(world_size, world_size * (world_size - 1) / 2)] * world_size
    assert pool.run(world_size, sum_of_ranks) == expected

    started = time.perf_counter()
    assert [pool.run(world_size, sum_of_ranks) for _ in range(5)] == [expected] * 5
    with capsys.disabled():
        print(f"\n{(time.perf_counter() - started) / 5:.3f} s for a case of {world_size} ranks")


def test_workers_are_kept_and_added_to(pool: WorkerPool) -> None:
    two = pool.run(2, os.getpid)
    four = pool.run(4, os.getpid)
    assert len(set(four)) == 4
    assert four[:2] == two == pool.run(2, os.getpid)


@pytest.mark.parametrize(("world_size", "rank"), [(2, 1), (4, 2)])
def test_the_rank_that_raised_is_named_at_once(pool: WorkerPool, world_size: int, rank: int) -> None:
    before = pool.run(world_size, os.getpid)
    started = time.perf_counter()
    with pytest.raises(WorkerFailure, match="the odd one out") as caught:
        pool.run(world_size, raise_on, rank)
    assert time.perf_counter() - started < 10

    assert caught.value.rank == rank
    assert "in raise_on" in caught.value.traceback
    peers = [peer for peer in range(world_size) if peer != rank]
    assert [line.split(":")[0] for line in caught.value.others] == [f"rank {peer}" for peer in peers]
    assert "the odd one out" not in "".join(caught.value.others)

    assert not set(before) & set(pool.run(world_size, os.getpid))
    assert pool.run(2, sum_of_ranks) == [(2, 1.0)] * 2


def test_peers_hear_of_a_failure_with_work_in_flight(pool: WorkerPool) -> None:
    with pytest.raises(WorkerFailure, match="gave up on") as caught:
        pool.run(2, raise_with_work_in_flight, 1)
    assert caught.value.rank == 1
    assert "onnection" in caught.value.others[0]  # reset or closed, but not waited out


@pytest.mark.parametrize("rank", [0, 1])
def test_the_rank_that_died_is_named_with_its_exit_code(pool: WorkerPool, rank: int) -> None:
    with pytest.raises(WorkerFailure, match="died without a word, exit code 3") as caught:
        pool.run(2, die_on, rank)
    assert caught.value.rank == rank


def test_a_worker_that_died_while_idle_is_named_and_replaced(pool: WorkerPool) -> None:
    worker = psutil.Process(pool.run(2, os.getpid)[1])
    worker.kill()
    worker.wait()
    with pytest.raises(WorkerFailure, match="exit code -9") as caught:
        pool.run(2, sum_of_ranks)
    assert caught.value.rank == 1
    assert pool.run(2, sum_of_ranks) == [(2, 1.0)] * 2


def test_a_hang_is_cut_and_located(pool: WorkerPool) -> None:
    pool.run(2, os.getpid)
    started = time.perf_counter()
    with pytest.raises(WorkerFailure, match="no answer within 3 s") as caught:
        pool.run(2, hang_on, 0, timeout=3.0)
    assert 3 < time.perf_counter() - started < 10
    assert caught.value.rank == 0
    assert "in hang_on" in caught.value.traceback
    assert pool.run(2, sum_of_ranks) == [(2, 1.0)] * 2


def test_a_case_leaves_nothing_for_the_next(pool: WorkerPool) -> None:
    before = pool.run(2, state)
    disturbed = pool.run(2, disturbed_state)
    assert all(disturbed[rank][name] != before[rank][name] for rank in range(2) for name in state())
    assert pool.run(2, state) == before


def test_a_rank_finds_itself_in_the_environment(pool: WorkerPool) -> None:
    for rank, seen in enumerate(pool.run(2, state)):
        environment = seen["environment"]
        assert [environment[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")] == [str(rank), str(rank), "2"]


def test_results_are_in_rank_order_and_bit_equal(pool: WorkerPool) -> None:
    results = pool.run(4, send_awkward_tensors_last_rank_first)
    for rank, tensors in enumerate(results):
        assert list(map(bits, tensors)) == list(map(bits, awkward_tensors(rank)))


def test_arguments_arrive_bit_equal(pool: WorkerPool) -> None:
    for tensor in awkward_tensors(7):
        assert [bits(seen) for seen in pool.run(2, same_tensor, tensor=tensor)] == [bits(tensor)] * 2


def test_workers_import_from_where_the_owner_does_now(
    pool: WorkerPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.run(2, os.getpid)
    (tmp_path / "written_by_a_test.py").write_text("def answer():\n    return 42\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert pool.run(2, importlib.import_module("written_by_a_test").answer) == [42, 42]


def test_a_call_that_cannot_be_sent_costs_no_worker(pool: WorkerPool) -> None:
    before = pool.run(2, os.getpid)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pool.run(2, lambda: None)
    assert pool.run(2, os.getpid) == before


def test_close_leaves_no_process_and_the_pool_usable() -> None:
    pool = WorkerPool()
    pids = pool.run(2, os.getpid)
    assert all(map(psutil.pid_exists, pids))
    started = time.perf_counter()
    pool.close()
    assert time.perf_counter() - started < 2
    assert not any(map(psutil.pid_exists, pids))  # a zombie would still exist
    assert not set(pool.run(2, os.getpid)) & set(pids)
    pool.close()


@pytest.fixture
def short_folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:  # `tmp_path` may be too long for the fork server's socket
        yield folder


def test_workers_idle_or_busy_die_with_a_killed_owner(short_folder: str) -> None:
    here = Path(__file__).resolve().parent
    command = [sys.executable, "-c", OWNER, str(here), str(here.parent)]
    environment = {**os.environ, "TMPDIR": short_folder}  # the killed cannot clean up
    owner = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        workers = {int(pid) for pid in owner.stdout.readline().split()}
        assert [owner.stdout.readline() for _ in range(2)] == ["busy\n"] * 2
        family = {child.pid for child in psutil.Process(owner.pid).children(recursive=True)}
        assert len(workers) == 4
        assert workers < family  # the rest is the fork server, which must not stay either
    finally:
        owner.kill()
        owner.wait()

    deadline = time.monotonic() + 60  # they need milliseconds, on an idle machine
    while (left := {pid for pid in family if lives(pid)}) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        psutil.Process(pid).kill()
    assert not left
