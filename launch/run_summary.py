"""A run's summary, of one that ended, goes on or died."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conf.compose import read_job
from models.flops import count_parameters
from train.metrics.peak import Peak
from train.metrics.summary import SUMMARY_FILE, Attempt, RunSummary, summarise


def read_summary(folder: Path, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> RunSummary:
    """Made anew from the `rows` that stand; of summary.json, where there is one, is how long the last attempt took.

    `settings`: the run's config.yaml, plain.

    Raises:
        ConfigError: if its config.yaml is another version's.
        ValueError: if no step was logged.
    """
    environment = settings["environment"]
    parameters = count_parameters(read_job(folder / "config.yaml").model)
    attempt = Attempt(
        resumed_after_step=environment["resumed_after_step"],
        world_size=environment["world_size"],
        device=environment["device"],
        peak=Peak(environment["peak_tflops"], environment["peak_source"]),
        parameters=parameters.total,
        parameters_active=parameters.active,
    )
    finished = RunSummary.read(folder / SUMMARY_FILE)
    return summarise(rows, folder, attempt, finished.wall_s if finished else None, settings)
