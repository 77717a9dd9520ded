"""The folder of `data.cache_dir` that one source's tokens are kept in."""

from pathlib import Path

from train.data.config import DataConfig
from train.data.source import DataError


def cache_folder(data: DataConfig, name: str) -> Path:
    """`name` in it; nothing is made.

    Raises:
        DataError: if it is in the home of nobody.
    """
    try:
        return Path(data.cache_dir).expanduser() / name
    except RuntimeError as error:
        raise DataError(f"data.cache_dir={data.cache_dir}: {error} Name another folder") from error
