"""A path as somebody typed it."""

from pathlib import Path

from models.config import ConfigError


def typed_path(word: str, path: str) -> Path:
    """`path` of the `word`, absolute.

    Raises:
        ConfigError: if there can be none: no such ~user, a loop of links, a name too long.
    """
    try:
        return Path(path).expanduser().resolve()
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{word}: {error}; name another") from error
