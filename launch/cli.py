"""`switchyard COMMAND …`: what a user types around a run."""

import sys
from collections.abc import Callable, Sequence

from launch.local import train
from launch.show import show
from models.config import ConfigError

USAGE = """\
switchyard train [nproc=N] [key=value …]   start N ranks on this machine and train (see switchyard train --help)
switchyard show RUN                        what a run did: its table and its loss curve

nproc=N is the number of ranks: by default one per GPU, or 2 on a machine without.
"""

COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"train": train, "show": show}


def main(words: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code: 2 for what must be typed differently, otherwise the command's own."""
    command, *rest = (sys.argv[1:] if words is None else list(words)) or ["--help"]
    if command in ("--help", "-h"):
        print(USAGE, end="")
        return 0
    try:
        if command not in COMMANDS:
            raise ConfigError(f"no command {command!r}; choose from {', '.join(COMMANDS)}")
        return COMMANDS[command](rest)
    except ConfigError as error:
        print(f"switchyard: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
