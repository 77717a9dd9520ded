"""limits=FILE.yaml: what counts of one step may come to at most, by point.

    fast: {kernels_a_layer: 240, host_waits: 0, late_graphs: 0, bytes/dp/all_reduce: 1650176}

A count above its limit is a change that somebody made, or a mistake: never noise.
"""

from collections.abc import Mapping, Sequence

from launch.bench.counts import PARTS, WHOLE, Counts, count_of, known
from launch.jobs.typed_yaml import read_typed_yaml
from models.config import ConfigError

Limits = Mapping[str, Mapping[str, float]]
"""By point and count."""


def read_limits(typed: str, points: Sequence[str]) -> Limits:
    """Of the file `typed`, for a bench of `points`.

    Raises:
        ConfigError: if it is no mapping of some of these to counts with a number each.
    """
    named, read = read_typed_yaml("limits", typed)
    if not (isinstance(read, dict) and read and all(isinstance(counts, dict) and counts for counts in read.values())):
        raise ConfigError(f"{named}: write a mapping of points to counts, as fast: {{host_waits: 0}}")
    for point, counts in read.items():
        if point not in points:
            raise ConfigError(f"{named}: no point is called {point}: they are {', '.join(points)}")
        for name, limit in counts.items():
            if not (isinstance(name, str) and known(name)):
                of_parts = ", ".join(f"{whole}/…" for whole in PARTS)
                raise ConfigError(f"{named}: {point} has {name}, and counts are {', '.join(WHOLE)}, {of_parts}")
            if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit >= 0:
                raise ConfigError(f"{named}: {point} has {name}: {limit}; set it to a number, 0 or more")
    return read


def excesses(limits: Limits, counts: Mapping[str, Counts]) -> list[str]:
    """A line for each of `counts`, by point, that is above its limit, or that there is not: what nobody counted keeps
    no limit."""
    lines = []
    for point, of_point in limits.items():
        for name, limit in of_point.items():
            count = count_of(counts[point], name)
            if count is None:
                lines.append(f"{point}: {name} has a limit of {limit:,} and was not counted: {_how(name)}")
            elif count > limit:
                lines.append(f"{point}: {name} {count:,} is above its limit of {limit:,}")
    return lines


def _how(name: str) -> str:
    if name.startswith(("kernels", "host_waits")):
        return "it takes trace=true, and a GPU"
    return "it takes measure.counts=true, and a job that ends; collectives, an engine of ours"
