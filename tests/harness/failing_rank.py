"""`python -m harness.failing_rank RANK key=value …`: a training job whose rank RANK raises in the middle of step 5.

Between a forward and its backward, so that its peers are left inside backward's collectives.
"""

import os
import sys
from itertools import count
from typing import Any

import train.__main__
import train.step

STEP = 5


def main() -> None:
    """One micro-batch a step: the loss is taken once in each."""
    rank, *words = sys.argv[1:]
    if os.environ["RANK"] == rank:
        steps, loss = count(1), train.step.cross_entropy_sum

        def loss_or_failure(*args: Any) -> Any:
            if next(steps) == STEP:
                raise RuntimeError(f"boom on rank {rank}")
            return loss(*args)

        train.step.cross_entropy_sum = loss_or_failure
    train.__main__.main(words)


if __name__ == "__main__":
    main()
