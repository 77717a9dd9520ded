"""How far the losses of runs are from those of the first: what a precision costs, beside what another seed does.

    python benchmarks/losses_apart.py BASE RUN… [--bound 0.01]

BASE and RUN are run folders with a loss for every step (train.log_every=1), same seed and batches for a cost, another
seed for the yardstick. Prints, for each, the mean loss of the last 100 steps and how far it is from BASE's, the largest
such distance of any 100 steps after the first 100, and the held-out loss. Exits with 1 if the first RUN's last 100
steps or held-out loss are more than the bound above BASE's, as a part of it.
"""

import argparse
import json
import sys
from pathlib import Path

WINDOW = 100
"""Steps."""


def losses(run: Path) -> tuple[list[float], float | None]:
    """Of each step, and the last held-out one."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    held_out = [row["eval/loss"] for row in rows if "eval/loss" in row]
    return [row["train/loss"] for row in rows if "train/loss" in row], held_out[-1] if held_out else None


def means(values: list[float]) -> list[float]:
    """Of every window, by its end."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [(sums[end] - sums[end - WINDOW]) / WINDOW for end in range(WINDOW, len(sums))]


def main() -> int:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--bound", type=float, default=0.01)
    asked = parser.parse_args()
    steps, held_out = losses(asked.base)
    base = means(steps)
    print(f"{'run':32} {'steps':>6} {'last 100':>9} {'apart':>8} {'most':>8} {'held out':>9} {'apart':>8}")
    within = True
    if not base:
        sys.exit(f"{asked.base} has {len(steps)} losses, and windows have {WINDOW}: train longer, log every step")
    for run in (asked.base, *asked.runs):
        own_steps, own_held_out = losses(run)
        own = means(own_steps)
        if len(own) != len(base):
            sys.exit(f"{run} has {len(own_steps)} losses and {asked.base} {len(steps)}: train.log_every=1, same steps")
        apart = [a / b - 1 for a, b in zip(own, base, strict=True)]
        most = max(apart[WINDOW:] or apart, key=abs)
        line = f"{run.name[-32:]:32} {len(own_steps):6} {own[-1]:9.4f} {apart[-1]:+8.2%} {most:+8.2%}"
        of_held_out = 0.0
        if own_held_out is not None and held_out is not None:
            of_held_out = own_held_out / held_out - 1
            line += f" {own_held_out:9.4f} {of_held_out:+8.2%}"
        print(line)
        if run == asked.runs[0]:
            within = max(apart[-1], of_held_out) <= asked.bound
    print(f"{asked.runs[0].name} is {'within' if within else 'NOT within'} {asked.bound:.1%} of {asked.base.name}")
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
