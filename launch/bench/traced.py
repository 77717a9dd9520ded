"""The job of a comparison that traces one step: which words make it so, and what it cannot be."""

from collections.abc import Sequence
from pathlib import Path

from conf.compose import compose
from conf.schema import JobConfig, validate
from models.config import ConfigError
from parallel.settling import settling_steps


def in_second_half(config: JobConfig) -> int:
    """A step of a job to trace, from which no speed is to be read: not before the first that can be."""
    return max(_first(config), config.train.steps // 2 + 1)


def _first(config: JobConfig) -> int:
    """That can be traced (train/trace/plan.py), after its warm-up."""
    return settling_steps(config.strategy.cuda_graph) + 2


def trace_words(step: int) -> list[str]:
    """Words by which `step` of a job is traced, and no other."""
    return [f"measure.trace_every={step}", "measure.trace_limit=1"]


def look_over_traced(
    words: Sequence[str], config: JobConfig, step: int, nproc: int, config_dir: Path | None, asked_by: str
) -> None:
    """Refuse a job of these `words`, which come to `config`, if that `step` of it cannot be traced.

    Raises:
        ConfigError: that begins with what asked for the trace.
    """
    if config.train.steps < (first := _first(config)):
        raise ConfigError(
            f"{asked_by} with train.steps={config.train.steps}: {first - 1} steps come before a traced one; set "
            f"train.steps={first}"
        )
    if not config.measure.clock:
        raise ConfigError(f"{asked_by} shows what the clock times: set measure.clock=true")
    try:
        validate(compose([*words, *trace_words(step)], config_dir).config, nproc)
    except ConfigError as error:
        raise ConfigError(f"{asked_by}: {error}") from error
