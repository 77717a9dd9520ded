"""The Python standard library's own source as a byte corpus: real text, on every machine, without a download."""

import os
import sysconfig
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from train.data.source import Corpus, DataError

SEPARATOR = b"\0"  # the one byte that Python source never holds
HELDOUT_ONE_IN = 20  # files

# Installed packages and tests are there on some machines only. idle_test is the name of idlelib's tests.
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
# What a build or an administrator generates differs from one machine to the next.
SKIPPED_PREFIXES = ("config-", "_sysconfigdata", "sitecustomize", "usercustomize")


@dataclass(frozen=True, eq=False)
class ByteWindows:
    """A text cut into windows: sample i is bytes [i·S, i·S + S + 1), so every byte but the first is a target once."""

    text: np.ndarray  # uint8 [bytes]
    sequence_length: int

    @property
    def vocab_size(self) -> int:
        """One id per byte value."""
        return 256

    def __len__(self) -> int:
        """Number of whole windows; what is left at the end is not used."""
        return (len(self.text) - 1) // self.sequence_length

    def sample(self, index: int) -> np.ndarray:
        """Window `index` as int64 [sequence_length + 1]. Raises IndexError outside the text."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        start = index * self.sequence_length
        return self.text[start : start + self.sequence_length + 1].astype(np.int64)


def open_stdlib(sequence_length: int, folder: Path | None = None) -> Corpus:
    """Train and held-out windows over every `*.py` below `folder` (default: this Python's standard library).

    A file is in one split whole, by a hash of its relative path: no text is in both, and adding a file moves no other.
    Raises DataError if there are no sources, or too few bytes for one sample in either split.
    """
    folder = folder or Path(sysconfig.get_path("stdlib"))
    paths = source_paths(folder)
    if not paths:
        raise DataError(f"no Python sources in {folder} (a zipped Python?): set data.source=synthetic")

    digest = sha256()
    train: list[bytes] = []
    heldout: list[bytes] = []
    for path in paths:
        document = (folder / path).read_bytes()
        digest.update(SEPARATOR.join([path.encode(), document, b""]))
        (heldout if is_heldout(path) else train).append(document)

    return Corpus(
        train=_windows(train, sequence_length, "train"),
        heldout=_windows(heldout, sequence_length, "held-out"),
        fingerprint=digest.hexdigest(),
    )


def source_paths(folder: Path) -> list[str]:
    """Relative POSIX paths of the sources that every installation of this Python version has, sorted."""
    paths = []
    for parent, folders, files in os.walk(folder):
        # In place: os.walk then never enters a skipped folder, and site-packages may be huge.
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS and not name.startswith(SKIPPED_PREFIXES)]
        for name in files:
            if name.endswith(".py") and not name.startswith(SKIPPED_PREFIXES):
                paths.append((Path(parent) / name).relative_to(folder).as_posix())
    return sorted(paths)


def is_heldout(path: str) -> bool:
    """Whether the file at this relative POSIX path is held out: about one in HELDOUT_ONE_IN, the same everywhere."""
    return int.from_bytes(sha256(path.encode()).digest()[:8], "big") % HELDOUT_ONE_IN == 0


def _windows(documents: list[bytes], sequence_length: int, split: str) -> ByteWindows:
    text = np.frombuffer(SEPARATOR.join(documents), dtype=np.uint8)
    if len(text) < sequence_length + 1:
        raise DataError(
            f"the {split} text has {len(text)} bytes, one sample takes {sequence_length + 1}: "
            "lower data.sequence_length"
        )
    return ByteWindows(text, sequence_length)
