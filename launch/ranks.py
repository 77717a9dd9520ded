"""How ranks are started, here or elsewhere: how many are asked for, and how they find our code."""

import os
from collections.abc import Sequence
from pathlib import Path

from models.config import ConfigError


def take_count(words: Sequence[str], name: str, what: str) -> tuple[int | None, list[str]]:
    """The value of the last `name=N` among `words`, if there is one; and the other words.

    Raises:
        ConfigError: unless N is a number of at least 1, of `what`.
    """
    given = [word.partition("=")[2] for word in words if word.startswith(f"{name}=")]
    rest = [word for word in words if not word.startswith(f"{name}=")]
    if not given:
        return None, rest
    if not (given[-1].isascii() and given[-1].isdigit() and int(given[-1][:9]) > 0):
        raise ConfigError(f"{name}={given[-1]}: set it to the number of {what}, at least 1")
    return int(given[-1]), rest


def code_environment() -> dict[str, str]:
    """What makes `python -m train` find our code, and not a train.py in the folder that it is started from."""
    path = [str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1"}
