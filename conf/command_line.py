"""The words after a program's name: `key=value …` for the configuration, and three flags."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conf.options import Options
from models.config import ConfigError

USAGE = """\
{program} [key=value …] [--cfg job] [--config-dir DIR]

  key=value          sets a key (train.steps=20) or picks an option (model=tiny strategy=fsdp); the last one counts
  --cfg job          prints the resolved configuration, all keys, and stops
  --config-dir DIR   adds the options in DIR/model, DIR/strategy, …
{more}
options, * by default:
{options}
"""


@dataclass(frozen=True)
class CommandLine:
    """Words, sorted."""

    overrides: list[str]
    config_dir: Path | None
    print_config: bool

    @classmethod
    def parse(cls, words: Sequence[str], program: str, more: str = "") -> "CommandLine":
        """Sort `words`; `--help` prints how to use `program`, and `more` lines of words that it takes, and exits 0.

        Raises:
            ConfigError: for a flag that does not exist, or lacks its value.
        """
        overrides: list[str] = []
        config_dir: Path | None = None
        print_config = False
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if word.startswith("--") and "=" in word:  # --cfg=job
                word, _, value = word.partition("=")
                rest.insert(0, value)
            if word in ("--help", "-h"):
                if os.environ.get("RANK", "0") == "0":  # under torchrun all ranks are asked, and one answers
                    options = Options.find(config_dir).describe()
                    print(USAGE.format(program=program, more=more, options=options), end="")
                raise SystemExit(0)
            elif word in ("--cfg", "-c"):
                if not rest or rest.pop(0) != "job":
                    raise ConfigError("--cfg prints the job: write --cfg job")
                print_config = True
            elif word in ("--config-dir", "-cd"):
                config_dir = Path(os.path.expanduser(rest.pop(0))) if rest else None
                if config_dir is None or not config_dir.is_dir():
                    raise ConfigError(
                        f"--config-dir {config_dir or ''}: name a folder that holds model/NAME.yaml or the like"
                    )
            elif word.startswith("-"):
                raise ConfigError(f"unknown flag {word}: there are --cfg job, --config-dir DIR and --help")
            else:
                overrides.append(word)
        return cls(overrides, config_dir, print_config)
