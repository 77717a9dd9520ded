"""A disk on which a run's folder finds no room: one line, and no traceback."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.config import ConfigError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The disk is full, or the user's part of it, or a file is as large as it may be."""


@contextmanager
def said_in_one_line(folder: Path) -> Iterator[None]:
    """Inside it a start writes to `folder` what it cannot do without. Rows, books and saves see to their own errors.

    Raises:
        ConfigError: instead of an OSError that says that there is no room.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        where, why = error.filename or folder, os.strerror(error.errno)
        raise ConfigError(f"{where} cannot be written to ({why}): make room there, and the same words go on") from error
