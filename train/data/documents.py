"""The documents of text files, read through `datasets` in the same order everywhere."""

import glob
import os
from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

from train.data.config import DocumentUnit
from train.data.datasets_library import import_datasets, no_cache, one_line, texts
from train.data.pieces import Mark, Piece, cut
from train.data.source import DataError

KINDS = {".txt": "text", ".jsonl": "json", ".jsonl.gz": "json", ".parquet": "parquet"}
"""What `datasets` calls the reader of a file with this suffix."""


class FileDocuments:
    """The documents of a file, a folder or a glob, file by file; blank ones are left out."""

    def __init__(self, path: str, text_field: str, unit: DocumentUnit) -> None:
        """Look for the files, and at nothing in them. Raises DataError if there is none, or one is not readable."""
        self.path, self.text_field, self.unit = path, text_field, unit
        self.files = find_files(path)
        self.part_bytes = [_status(file).st_size for file in self.files]
        if not any(self.part_bytes):
            raise DataError(f"data.path={path} holds no text: its {len(self.files)} file(s) are empty")
        self._datasets = import_datasets("data=text")

    def identity(self) -> dict[str, object]:
        """The settings, and a hash of the files' paths, sizes and times of change."""
        listed = sha256()
        for file in self.files:
            status = _status(file)
            listed.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="surrogateescape"))
        return {
            "data.path": self.path,
            "data.text_field": self.text_field,
            "data.document": self.unit.value,
            "files": listed.hexdigest(),
        }

    def pieces(self, start: Mark) -> Iterator[Piece]:
        """All pieces from `start` on. Raises DataError, which names the file, for one that cannot be read."""
        for part in range(start.part, len(self.files)):
            skipped, count = start.piece if part == start.part else 0, 0
            # `datasets` fails on an empty .jsonl.
            for document in self._documents(self.files[part]) if self.part_bytes[part] else ():
                for text, last in cut(document):
                    count += 1
                    if count > skipped:
                        yield Piece(text, last, Mark(part, count))

    def _documents(self, file: str) -> Iterator[Iterable[str]]:
        """Each document of a file, as chunks of text."""
        batches = self._rows(file)
        rows = chain.from_iterable(batches)
        if not file.endswith(".txt"):
            yield from ([text] for text in rows)
        elif self.unit is DocumentUnit.file:
            yield ("".join(lines) for lines in batches)
        elif self.unit is DocumentUnit.paragraph:
            yield from ([paragraph] for paragraph in _paragraphs(rows))
        else:
            yield from ([line.removesuffix("\n")] for line in rows)

    def _rows(self, file: str) -> Iterator[list[str]]:
        """The records' texts; of a .txt file its lines, with their ends: it may be too large to be read at once."""
        kind = KINDS[_suffix(file) or ""]
        options: dict[str, Any] = {}
        if kind == "text":
            options = {"sample_by": "line", "keep_linebreaks": True}
        with no_cache() as cache_dir:
            try:
                # Escaped: to `datasets` a path is a glob.
                options |= {"data_files": [glob.escape(file)], "split": "train", "streaming": True}
                dataset = self._datasets.load_dataset(kind, cache_dir=cache_dir, **options)
                yield from texts(dataset, "text" if kind == "text" else self.text_field, file)
            except DataError:
                raise
            except UnicodeError as error:
                raise DataError(f"{file} is not UTF-8: convert it (iconv -t UTF-8)") from error
            except OSError as error:
                raise DataError(f"{file} cannot be read: {one_line(error)}") from error
            except Exception as error:  # its readers raise what their parsers do, in any class
                raise DataError(f"{file} is not {kind}, or is damaged: {one_line(error)}") from error


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """The runs of lines between blank ones. Not as `datasets` cuts them, to which a line with a space is not blank."""
    paragraph: list[str] = []
    for line in lines:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "".join(paragraph).removesuffix("\n")
            paragraph = []
    if paragraph:
        yield "".join(paragraph).removesuffix("\n")


def find_files(path: str) -> list[str]:
    """The text files that `path` names, absolute, sorted; in a folder, hidden ones are left out.

    Raises:
        DataError: if there are none.
    """
    supported = ", ".join(KINDS)
    place = os.path.abspath(os.path.expanduser(path))
    if not path.strip():
        raise DataError("data.path is empty: set it to a file, a folder or a glob")
    if os.path.isfile(place):
        if _suffix(place) is None:
            raise DataError(f"data.path={path}: no text is read from such a file; name one that ends in {supported}")
        return [place]
    if os.path.isdir(place):
        found = sorted(_walk(place), key=lambda file: Path(file).relative_to(place).as_posix())
    else:
        found = sorted(file for file in glob.glob(place, recursive=True) if os.path.isfile(file))
    first: dict[str, str] = {}  # of the names that a file has: links may form a loop, and ** follows them
    for file in found:
        if _suffix(file) is not None:
            first.setdefault(os.path.realpath(file), file)
    files = list(first.values())
    if not files:
        what = "holds" if os.path.isdir(place) else "matches"
        raise DataError(f"data.path={path} {what} no text file: name a file, folder or glob of {supported} files")
    return files


def _walk(folder: str) -> Iterator[str]:
    """The files below `folder`, also behind links; each folder once."""
    seen = {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_refuse_folder):
        shown = {os.path.realpath(os.path.join(parent, name)): name for name in folders if not name.startswith(".")}
        # In place: os.walk then does not enter the others.
        folders[:] = [name for place, name in shown.items() if place not in seen]
        seen.update(shown)
        yield from (os.path.join(parent, name) for name in names if not name.startswith("."))


def _refuse_folder(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read ({error.strerror}): give yourself the right to") from error


def _suffix(file: str) -> str | None:
    return next((suffix for suffix in KINDS if file.endswith(suffix)), None)


def _status(file: str) -> os.stat_result:
    if not os.access(file, os.R_OK):
        raise DataError(f"{file} cannot be read: give yourself the right to (chmod u+r)")
    return os.stat(file)
