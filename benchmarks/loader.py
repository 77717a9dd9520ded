"""Tokens/s that the loader alone gives one rank: as a job reads them, with nobody training on them.

    python benchmarks/loader.py model=moe_5b data=tokens data.path=FOLDER train.global_batch_size=16

Words are a job's. Median and quartiles of 20 windows of 0.25 s, after one to warm up; two lines: read between steps
(overlap.data=0) and prefetched by a thread, as `overlap.data` says. It needs no GPU and copies to none.
"""

import statistics
import sys
import time

import torch

from conf.command_line import CommandLine
from conf.compose import compose
from conf.schema import validate
from train.data.corpus import open_corpus
from train.data.loader import BatchLoader

WINDOWS, WINDOW_S = 20, 0.25


def tokens_per_s(loader: BatchLoader) -> float:
    """Of one window."""
    tokens, started = 0, time.perf_counter()
    while time.perf_counter() - started < WINDOW_S:
        tokens += next(loader)[..., 1:].numel()
    return tokens / (time.perf_counter() - started)


def main() -> None:
    """Print one line per depth of prefetch."""
    line = CommandLine.parse(sys.argv[1:], program="python benchmarks/loader.py")
    config = compose(["strategy=single", *line.overrides], line.config_dir).config
    validate(config, world_size=1)
    corpus = open_corpus(config.data, config.model.vocab_size, config.train.seed)
    for prefetch in (0, config.overlap.data):
        with BatchLoader(
            stream=corpus.train,
            global_batch_size=config.train.global_batch_size,
            micro_batch_size=config.train.micro_batch(1),
            dp_rank=0,
            dp_size=1,
            start_step=0,
            prefetch=prefetch,
            device=torch.device("cpu"),
        ) as loader:
            rates = [tokens_per_s(loader) / 1e6 for _ in range(WINDOWS + 1)][1:]
        low, median, high = statistics.quantiles(rates, n=4)
        print(f"overlap.data={prefetch}: {median:.1f} M tokens/s (quartiles {low:.1f} … {high:.1f})")


if __name__ == "__main__":
    main()
