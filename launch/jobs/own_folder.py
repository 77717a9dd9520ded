"""The folder of a command that starts several jobs: made, and one command's at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.config import ConfigError
from train.data.file_lock import FileLock


@contextmanager
def own_folder(folder: Path, key: str, command: str) -> Iterator[None]:
    """Make `folder`, which the word `key` names, and keep other commands out of it.

    Raises:
        ConfigError: if it cannot be made, and where another `command` runs in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
    except OSError as error:
        raise ConfigError(f"{key}={folder}: {error.strerror}; name a folder that you may write to") from error
    with lock:
        if not lock.try_acquire():
            raise ConfigError(f"{key}={folder}: another {command} runs there; let it end, or name another folder")
        yield
