"""Which jobs a comparison is, and in which order they run."""

from launch.bench.job import Job
from launch.bench.order import Order, trace_words
from launch.bench.peer import PEER_PROGRAM
from launch.jobs.points import Point
from launch.jobs.torchrun_job import TRAIN


def rounds_of(order: Order) -> list[list[Job]]:
    """Each round's jobs, all points once, every other round backwards: what drifts slowly hits all points alike. With
    trace=true one more, of our points, that no speed is read from."""
    rounds = []
    for number in range(1, order.rounds + 1):
        jobs = [_job(order, point, number) for point in (*order.points, *order.peers)]
        rounds.append(jobs if number % 2 else jobs[::-1])
    if order.trace:
        rounds.append([_job(order, point, None) for point in order.points])
    return rounds


def _job(order: Order, point: Point, number: int | None) -> Job:
    runs = order.folder / "runs"
    if point in order.peers:
        eager = [] if order.peer_compile else ["compile=false"]
        return Job.of(point, number, runs, order.nproc, (str(PEER_PROGRAM),), [*eager, *order.flags])
    traced = trace_words(order.configs[point.name]) if number is None else []
    return Job.of(point, number, runs, order.nproc, TRAIN, [*traced, *order.flags])
