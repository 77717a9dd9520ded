"""A YAML file that somebody typed the name of."""

import os
from pathlib import Path
from typing import Any

import yaml

from models.config import ConfigError


def read_typed_yaml(key: str, typed: str) -> tuple[str, Any]:
    """How to name the file in what is said of it, KEY=PATH, and what it holds.

    Raises:
        ConfigError: if there is none, or it is no YAML.
    """
    path = Path(os.path.expanduser(typed))
    named = f"{key}={path}"
    try:
        return named, yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{named}: {error.strerror}; name a YAML file") from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise ConfigError(f"{named} is not YAML: {' '.join(str(error).split())}") from error
