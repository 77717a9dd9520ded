"""Which layers each pipeline stage has: neighbours, so that the slowest stage is as fast as can be."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from statistics import fmean

from models.config import ConfigError, ModelConfig
from models.flops import flops_per_token


def split_layers(model: ModelConfig, n_stages: int, sequence_length: int) -> tuple[range, ...]:
    """Layers of each stage, weighed by their FLOPs; the last stage also has the head (the first one's embedding is a
    look-up and weighs nothing).

    Raises:
        ConfigError: if there are fewer layers than stages.
    """
    if model.n_layers < n_stages:
        raise ConfigError(
            f"model.n_layers={model.n_layers} are fewer than the pipeline's {n_stages} stages: set strategy.pp or "
            f"strategy.stages_per_rank lower, or model.n_layers to at least {n_stages}"
        )
    layers, head = _costs(model, sequence_length)
    return divide([*layers[:-1], layers[-1] + head], n_stages)


def stage_shares(model: ModelConfig, n_stages: int, sequence_length: int) -> tuple[float, ...]:
    """How many times as large as the mean each stage is, by FLOPs. Raises ConfigError as split_layers does."""
    layers, head = _costs(model, sequence_length)
    layers[-1] += head
    stages = [sum(layers[i] for i in stage) for stage in split_layers(model, n_stages, sequence_length)]
    return tuple(cost / fmean(stages) for cost in stages)


def divide(costs: Sequence[float], n_parts: int) -> tuple[range, ...]:
    """Cut `costs` into `n_parts` runs of neighbours, none empty, so that the largest sum is least; where one item is
    larger than any run could be, the others come out even."""

    @cache
    def best(end: int, parts: int) -> tuple[float, float, tuple[int, ...]]:
        """The least largest sum of costs[:end] in `parts` runs, the sum of squares, and where each begins."""
        if parts == 1:
            return sum(costs[:end]), sum(costs[:end]) ** 2, (0,)
        options = []
        for start in range(parts - 1, end):
            largest, squares, starts = best(start, parts - 1)
            last = sum(costs[start:end])
            options.append((max(largest, last), squares + last**2, (*starts, start)))
        return min(options)

    *_, starts = best(len(costs), n_parts)
    return tuple(range(start, stop) for start, stop in zip(starts, (*starts[1:], len(costs)), strict=True))


def _costs(model: ModelConfig, sequence_length: int) -> tuple[list[float], float]:
    """FLOPs per token of each layer, and of the head."""

    def flops(n_layers: int, n_dense: int) -> int:
        return flops_per_token(replace(model, n_layers=n_layers, n_dense_layers=n_dense), sequence_length)

    head = flops(0, 0)
    dense, sparse = flops(1, 1) - head, flops(1, 0) - head
    return [dense if i < model.n_dense_layers else sparse for i in range(model.n_layers)], head
