"""The documents of a Hugging Face dataset, from the hub or a local folder, read as they are streamed."""

import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from train.data.config import DataConfig, MixturePart
from train.data.datasets_library import import_datasets, no_cache, one_line, texts
from train.data.pieces import Mark, Piece, cut
from train.data.source import DataError

SAVED_TO_DISK = ("state.json", "dataset_dict.json")
"""What `save_to_disk` leaves, and `load_dataset` does not read."""

SAMPLED = 2**16
"""Bytes at either end of a local file that tell it from another one."""


class HfDocuments:
    """The documents of one split, in the stream's order, or drawn from a buffer of `shuffle_buffer` of them."""

    part_bytes = None
    """A stream does not tell its length."""

    def __init__(self, source: DataConfig | MixturePart, split: str, split_key: str, shuffle_buffer: int, seed: int):
        """Find the dataset; `split_key` is what the user names the split by.

        Raises:
            DataError: if there is no such dataset, subset or split, or it cannot be reached.
        """
        self._source, self._split, self._split_key = source, split, split_key
        self._shuffle_buffer, self._seed = shuffle_buffer, seed
        self._library = import_datasets("data=hf")
        self._folder = local_folder(source.name)
        self._revision = None if self._folder else _hub_revision(source.name)
        with no_cache() as cache_dir:
            self._open(cache_dir)

    def identity(self) -> dict[str, object]:
        """The settings, and the hub's revision, or a hash of the local files' names, sizes, first and last 64 KiB."""
        shuffled = (
            {"data.shuffle_buffer": self._shuffle_buffer, "train.seed": self._seed} if self._shuffle_buffer else {}
        )
        return shuffled | {
            "data.name": self._source.name if self._folder is None else self._folder.name,
            "data.subset": self._source.subset,
            self._split_key: self._split,
            "data.text_field": self._source.text_field,
            "files": self._revision or _hash_files(self._folder or Path()),
        }

    def pieces(self, start: Mark) -> Iterator[Piece]:
        """All pieces from `start` on; those before it are read again, and dropped. Raises DataError."""
        part = start.part
        for text in self._texts(start.part):
            pieces = list(cut([text]))
            for count, (piece, last) in enumerate(pieces, 1):
                if count > start.piece or part > start.part:
                    yield Piece(piece, last, Mark(part + 1, 0) if last else Mark(part, count))
            part += 1

    def _texts(self, skipped: int) -> Iterator[str]:
        """All texts but the first `skipped`."""
        with no_cache() as cache_dir:
            dataset = self._open(cache_dir)
            try:
                if self._shuffle_buffer:
                    dataset = dataset.shuffle(seed=self._seed, buffer_size=self._shuffle_buffer)
                if skipped:
                    dataset = dataset.skip(skipped)
                for batch in texts(dataset, self._source.text_field, f"data.name={self._source.name}", skipped):
                    yield from batch
            except DataError:
                raise
            except Exception as error:  # whatever the network, or the reader of the dataset's own format, raises
                raise DataError(f"data.name={self._source.name} cannot be read on: {one_line(error)}") from error

    def _open(self, cache_dir: str) -> Any:
        """The split as a `datasets.IterableDataset`."""
        name, subset = self._source.name, self._source.subset
        where = {"cache_dir": cache_dir} if self._folder else {"revision": self._revision}
        try:
            splits = self._library.load_dataset(str(self._folder or name), subset, streaming=True, **where)
        except Exception as error:  # of a dozen classes, from those of four libraries
            if "config" in str(error).lower() and isinstance(error, ValueError):
                raise DataError(f"data.subset={subset}: {one_line(error)}") from error
            raise DataError(f"data.name={name} cannot be opened: {one_line(error)}") from error
        if self._split not in splits:
            raise DataError(f"{self._split_key}={self._split}: {name} has no such split; it has {', '.join(splits)}")
        return splits[self._split]


def local_folder(name: str) -> Path | None:
    """The folder that `name` names; None if it is a name on the hub.

    Raises:
        DataError: if it is a path, and there is no dataset.
    """
    if not name.strip():
        raise DataError("data.name is empty: set it to a dataset, a name on the hub or a local folder")
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        if any((path / file).is_file() for file in SAVED_TO_DISK):
            raise DataError(
                f"data.name={name} was written by save_to_disk, which is not made for streaming: write it with "
                "to_parquet(…), and name the folder of that"
            )
        return path.resolve()
    if path.exists():
        raise DataError(f"data.name={name} is a file: use data=text data.path={name}, or name its folder")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise DataError(f"data.name={name}: there is no such folder")
    return None


def _hub_revision(name: str) -> str:
    """The commit that the dataset `name` is at: what is read later must be the same."""
    from huggingface_hub import HfApi

    try:
        revision = HfApi().dataset_info(name, timeout=30).sha
    except Exception as error:
        raise DataError(
            f"data.name={name}: there is no such folder, and the hub does not give it: {one_line(error)}"
        ) from error
    if revision is None:
        raise DataError(f"data.name={name}: the hub names no revision of it")
    return revision


def _hash_files(folder: Path) -> str:
    """SHA-256 of the relative paths, sizes, beginnings and ends of the files in `folder`."""
    listed = sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = os.fsencode(path.relative_to(folder).as_posix())
        size = path.stat().st_size
        with open(path, "rb") as file:
            begins = file.read(SAMPLED)
            file.seek(max(0, size - SAMPLED))
            listed.update(b"%b\0%d\0%b%b" % (name, size, sha256(begins).digest(), sha256(file.read()).digest()))
    return listed.hexdigest()
