"""Files that a user asks a command to draw into."""

from pathlib import Path

from models.config import ConfigError


def write_picture(path: Path, flag: str, content: bytes) -> None:
    """Write `content` to the file that `flag` names.

    Raises:
        ConfigError: if it cannot be written.
    """
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror}; name a file in a folder that you may write to") from error
