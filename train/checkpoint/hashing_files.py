"""A file system, as torch.distributed.checkpoint wants one, that hashes what it is given to write."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from torch.distributed.checkpoint.filesystem import FileSystem

from train.checkpoint.manifest import FileRecord


class HashingFiles(FileSystem):
    """New files, one after another."""

    def __init__(self) -> None:
        self.records: dict[str, FileRecord] = {}
        """Of those that are written, by name."""

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        """Open `path` to be written.

        Raises:
            OSError: as the disk gives it: between it and us, torch's serialisation makes errors of its own.
        """
        with open(path, mode) as file:
            hashing = _HashingFile(file)
            try:
                yield hashing
            except RuntimeError as error:
                if hashing.failure:
                    raise hashing.failure from error
                raise
        self.records[Path(path).name] = FileRecord(hashing.bytes, hashing.hash.hexdigest())


class _HashingFile:
    """What torch asks of a stream."""

    def __init__(self, file: IO[Any]) -> None:
        self._file = file
        self.hash = hashlib.sha256()
        self.bytes = 0
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Append `data`, whole."""
        view = memoryview(data)
        try:
            self._file.write(view)
        except OSError as error:
            self.failure = error
            raise
        self.hash.update(view)
        self.bytes += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        """Bytes so far."""
        return self.bytes

    def flush(self) -> None:
        """Give the system what is buffered."""
        self._file.flush()

    def close(self) -> None:
        """Close the file; what was hashed stays."""
        self._file.close()

    def fileno(self) -> int:
        """For fsync: torch syncs its metadata without a flush."""
        self.flush()
        return self._file.fileno()
