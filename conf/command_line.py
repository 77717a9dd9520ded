"""The words after a program's name: `key=value …` for the configuration, and three flags."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.config import ConfigError

USAGE = """\
{program} [key=value …] [--cfg job] [--config-dir DIR]

  key=value          sets a field (train.steps=20) or picks an option (model=tiny strategy=fsdp)
  --cfg job          prints the resolved configuration, all keys, and stops
  --config-dir DIR   looks for options in DIR/model, DIR/strategy, … too
"""


@dataclass(frozen=True)
class CommandLine:
    """Words, sorted."""

    overrides: list[str]
    config_dir: Path | None
    print_config: bool

    @classmethod
    def parse(cls, words: Sequence[str], program: str) -> "CommandLine":
        """Sort `words`; `--help` prints how to use `program` and exits 0.

        Raises:
            ConfigError: for a flag that does not exist, or lacks its value.
        """
        overrides: list[str] = []
        config_dir: Path | None = None
        print_config = False
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if word in ("--help", "-h"):
                print(USAGE.format(program=program), end="")
                raise SystemExit(0)
            elif word in ("--cfg", "-c"):
                if not rest or rest.pop(0) != "job":
                    raise ConfigError("--cfg prints the job: write --cfg job")
                print_config = True
            elif word in ("--config-dir", "-cd"):
                config_dir = Path(rest.pop(0)).expanduser() if rest else None
                if config_dir is None or not config_dir.is_dir():
                    raise ConfigError(f"--config-dir {config_dir or ''}: name a folder with model/, strategy/, … in it")
            elif word.startswith("-"):
                raise ConfigError(f"unknown flag {word}: there are --cfg job, --config-dir DIR and --help")
            else:
                overrides.append(word)
        return cls(overrides, config_dir, print_config)
