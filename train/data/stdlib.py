"""The Python standard library's own source as a byte corpus: real text, on every machine, without a download."""

import os
import sysconfig
from hashlib import sha256
from pathlib import Path

import numpy as np

from train.data.source import Corpus, DataError
from train.data.stream import InOrder, ShuffledStream
from train.data.windows import TokenWindows

SEPARATOR = b"\0"  # the one byte that Python source never holds
HELDOUT_ONE_IN = 20  # files

# Installed packages and tests are there on some machines only. idle_test is the name of idlelib's tests.
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
# What a build or an administrator generates differs from one machine to the next.
SKIPPED_PREFIXES = ("config-", "_sysconfigdata", "sitecustomize", "usercustomize")


def open_stdlib(sequence_length: int, seed: int, folder: Path | None = None) -> Corpus:
    """Train and held-out windows over every `*.py` below `folder` (default: this Python's standard library).

    A file is in one split whole, by a hash of its relative path: no text is in both, and adding a file moves no other.
    `seed` orders the training windows. Ids are bytes, and 0 ends a document.
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
        train=ShuffledStream(_windows(train, sequence_length, "train"), seed),
        heldout=InOrder(_windows(heldout, sequence_length, "held-out")),
        fingerprint=digest.hexdigest(),
        separator=SEPARATOR[0],
        tokenizer="bytes",
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


def _windows(documents: list[bytes], sequence_length: int, split: str) -> TokenWindows:
    text = np.frombuffer(SEPARATOR.join(documents), dtype=np.uint8)
    return TokenWindows([text], sequence_length, 256, f"the standard library's {split} text")
