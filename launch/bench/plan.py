"""Which jobs a comparison is, and in which order they run."""

from launch.bench.job import TRAIN, Job
from launch.bench.order import Order
from launch.bench.peer import PEERS
from launch.bench.points import Point


def rounds_of(order: Order) -> list[list[Job]]:
    """Each round's jobs, all points once, every other round backwards: what drifts slowly hits all points alike."""
    rounds = []
    for number in range(1, order.rounds + 1):
        jobs = [_job(order, point, number) for point in (*order.points, *order.peers)]
        rounds.append(jobs if number % 2 else jobs[::-1])
    return rounds


def _job(order: Order, point: Point, number: int) -> Job:
    runs = order.folder / "runs"
    if order.peer and point in order.peers:
        eager = [] if order.peer_compile else ["compile=false"]
        return Job(point, number, runs, order.nproc, (str(PEERS[order.peer]),), [*eager, *order.flags])
    traced = _trace_once(order, point) if order.trace and number == order.rounds else []
    return Job(point, number, runs, order.nproc, TRAIN, [*traced, *order.flags])


def _trace_once(order: Order, point: Point) -> list[str]:
    """Words by which one step is traced, after the warm-up: in the second half."""
    steps = order.configs[point.name].train.steps
    return [f"measure.trace_every={steps // 2 + 1}", "measure.trace_limit=1"]
