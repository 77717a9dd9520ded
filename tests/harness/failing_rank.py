"""`python -m harness.failing_rank RANK key=value …`: a training job whose rank RANK raises in the middle of step 5.

Between a forward and its backward, so that its peers are left inside backward's collectives.
"""

import os
import sys
from itertools import count
from typing import Any

import train.__main__
from models.head import Head

STEP = 5


def main() -> None:
    """One micro-batch a step: the loss is taken once in each."""
    rank, *words = sys.argv[1:]
    if os.environ["RANK"] == rank:
        steps, loss = count(1), Head.forward

        def loss_or_failure(*args: Any) -> Any:
            if next(steps) == STEP:
                raise RuntimeError(f"boom on rank {rank}")
            return loss(*args)

        Head.forward = loss_or_failure  # type: ignore[method-assign]
    train.__main__.main(words)


if __name__ == "__main__":
    main()
