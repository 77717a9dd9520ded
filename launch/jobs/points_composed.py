"""Points, as configurations: composed and looked over, each refusal with the name of its point."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from conf.compose import Composed, compose
from conf.schema import JobConfig, validate
from launch.jobs.points import Point
from models.config import ConfigError
from parallel.mesh import Degrees
from parallel.world import Launch, choose_device
from train.start.device_check import check_device


def compose_points(points: Sequence[Point], config_dir: Path | None) -> dict[str, Composed]:
    """By name.

    Raises:
        ConfigError: for the first word that no job takes.
    """
    composed = {}
    for point in points:
        with naming(point, points):
            composed[point.name] = compose(point.words, config_dir)
    return composed


@contextmanager
def naming(point: Point, points: Sequence[Point]) -> Iterator[None]:
    """A refusal inside says which of `points` it is about, unless there is one alone."""
    try:
        yield
    except ConfigError as error:
        if [point] == list(points):
            raise
        raise ConfigError(f"{point.name}: {error}") from error


def look_over(config: JobConfig, nproc: int) -> None:
    """Refuse what `nproc` ranks of this machine cannot run.

    Raises:
        ConfigError: one line that says what to change.
    """
    validate(config, nproc)
    device = choose_device(config.train.device.value, Launch(0, nproc, 0, nproc, launched=False))
    check_device(config, Degrees.resolve(config.strategy, nproc), device)
