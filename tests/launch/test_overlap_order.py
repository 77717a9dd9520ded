"""What overlap=… changes in the order of a real step on two gloo ranks, as the proof reads it from their traces."""

from pathlib import Path

from harness.layout_run import CPU, DDP, FSDP, Layout, batches_of, open_layout, this_world
from harness.worker_pool import WorkerPool

from launch.overlap.proof import Order, issued_earlier
from launch.overlap.side import Step
from parallel.clock.fsdp import fsdp_timed
from parallel.clock.phase_clock import Phase, PhaseClock
from parallel.clock.time_source import HostTime
from parallel.comm import Communicator
from parallel.config import OverlapConfig
from train.step import OptimizerStep
from train.trace.chrome import read_trace
from train.trace.issue_order import Begun, issue_order, updates_behind_backward
from train.trace.ranges import profiler_range
from train.trace.tracer import Tracer

DP = "exposed_comm/dp"


def traced(layout: Layout, folder: str) -> tuple[list[Begun], tuple[int, int]]:
    """One step of `layout` on the calling rank, as a job's own trace shows it."""
    world = this_world()
    clock = PhaseClock(HostTime())
    comm = Communicator(clock)
    engine = open_layout(layout, world, comm)
    loader = batches_of(layout, engine.data)
    step = OptimizerStep(engine, comm, layout.batching, layout.global_batch_size, clip_norm=1.0)
    tracer = Tracer(Path(folder), world.rank, CPU)
    with fsdp_timed(clock, CPU):
        step(next(loader), layout.rate)
        clock.enter(Phase.log)
        tracer.begin()
        tracer.step()
        clock.ranges = profiler_range
        clock.enter(Phase.data_wait)
        step(next(loader), layout.rate)
        clock.enter(Phase.log)
        clock.ranges = None
        clock.enter(Phase.data_wait)
    trace = read_trace(tracer.end(1))
    return issue_order(trace), updates_behind_backward(trace)


def order_of(pool: WorkerPool, layout: Layout, folder: Path, bucket: str) -> Order:
    order = Order.of(Step(None, None, *pool.run(2, traced, layout, str(folder))[0]), bucket)
    assert order is not None
    return order


def test_buckets_travel_behind_backward_or_after_it(pool: WorkerPool, tmp_path: Path) -> None:
    """Buckets of 4 KiB, of which the last ones have no backward left to hide behind."""
    off, on = (
        order_of(pool, Layout(DDP, OverlapConfig(grad_reduce=on, bucket_mib=4 / 1024)), tmp_path / str(on), DP)
        for on in (False, True)
    )
    assert off.n == on.n > 5
    assert off.covered == 0
    assert on.covered is not None
    assert on.n - 3 <= on.covered < on.n


def test_parts_are_gathered_earlier_with_prefetch(pool: WorkerPool, tmp_path: Path) -> None:
    """FSDP2 on gloo: as many collectives, some of them issued with less compute before them."""
    off, on = (
        pool.run(2, traced, Layout(FSDP, OverlapConfig(param_prefetch=depth)), str(tmp_path / str(depth)))[0][0]
        for depth in (1, 2)
    )
    earlier = issued_earlier(off, on, "fsdp")
    assert earlier is not None
    assert earlier > 5
    assert issued_earlier(off, off, "fsdp") == 0
    assert all(one.between is None for one in off if one.kind == "fsdp")


def test_weights_are_updated_after_backward(pool: WorkerPool, tmp_path: Path) -> None:
    order = order_of(pool, Layout(DDP), tmp_path, "compute_opt")
    assert (order.covered, order.n > 10) == (0, True)
