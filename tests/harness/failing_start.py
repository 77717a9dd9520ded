"""`python -m harness.failing_start SECONDS key=value …`: a training job whose first start, of torchrun's, dies on every
rank after SECONDS, before it has joined the others."""

import os
import sys
import time

import train.__main__


def main() -> None:
    """Die, or run the job."""
    seconds, *words = sys.argv[1:]
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        time.sleep(float(seconds))
        os._exit(1)
    train.__main__.main(words)


if __name__ == "__main__":
    main()
