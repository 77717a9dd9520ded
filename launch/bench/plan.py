"""Which jobs a comparison is, and in which order they run."""

from collections.abc import Callable, Sequence

from launch.bench.job import Job
from launch.bench.order import Order
from launch.bench.peer import PEER_PROGRAM
from launch.bench.traced import in_second_half, trace_words
from launch.jobs.points import Point
from launch.jobs.torchrun_job import TRAIN


def rounds_of(order: Order) -> list[list[Job]]:
    """Each round's jobs. With trace=true one round more, of our points, that no speed is read from."""
    rounds = forth_and_back(order.rounds, [*order.points, *order.peers], lambda point, n: _job(order, point, n))
    if order.trace:
        rounds.append([_job(order, point, None) for point in order.points])
    return rounds


def forth_and_back(n_rounds: int, points: Sequence[Point], job_of: Callable[[Point, int], Job]) -> list[list[Job]]:
    """Each round's jobs: all points once, every other round backwards. What drifts slowly hits all points alike."""
    rounds = []
    for number in range(1, n_rounds + 1):
        jobs = [job_of(point, number) for point in points]
        rounds.append(jobs if number % 2 else jobs[::-1])
    return rounds


def _job(order: Order, point: Point, number: int | None) -> Job:
    runs = order.folder / "runs"
    if point in order.peers:
        eager = [] if order.peer_compile else ["compile=false"]
        return Job.of(point, number, runs, order.nproc, (str(PEER_PROGRAM),), [*eager, *order.flags])
    traced = trace_words(in_second_half(order.configs[point.name])) if number is None else []
    return Job.of(point, number, runs, order.nproc, TRAIN, [*traced, *order.flags])
