"""`switchyard COMMAND …`: what a user types around a run."""

import difflib
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
HELP = ("--help", "-h")


def main(words: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code: 2 for what must be typed differently, otherwise the command's own."""
    command, *rest = (sys.argv[1:] if words is None else list(words)) or [""]
    # `train` has more to say about itself than this does.
    if command in HELP or (command != "train" and command in COMMANDS and any(word in HELP for word in rest)):
        print(USAGE, end="")
        return 0
    try:
        if command not in COMMANDS:
            raise ConfigError(_unknown(command))
        return COMMANDS[command](rest)
    except ConfigError as error:
        print(f"switchyard: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _unknown(command: str) -> str:
    close = difflib.get_close_matches(command, COMMANDS, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    said = f"no command {command!r}" if command else "no command given"
    return f"{said}; {hint}choose from {', '.join(COMMANDS)} (switchyard --help)"


if __name__ == "__main__":
    sys.exit(main())
