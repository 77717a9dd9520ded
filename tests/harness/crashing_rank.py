"""`python -m harness.crashing_rank STEP key=value …`: a training job whose rank 0 dies in the forward of step STEP, in
the first of torchrun's starts alone."""

import os
import signal
import sys
from itertools import count
from typing import Any

import train.__main__
from models.head import Head


def main() -> None:
    """One micro-batch a step: the loss is taken once in each."""
    step, *words = sys.argv[1:]
    if os.environ["RANK"] == os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        steps, loss = count(1), Head.forward

        def loss_or_death(*args: Any) -> Any:
            if next(steps) == int(step):
                os.kill(os.getpid(), signal.SIGKILL)
            return loss(*args)

        Head.forward = loss_or_death  # type: ignore[method-assign]
    train.__main__.main(words)


if __name__ == "__main__":
    main()
