"""Whether a checkpoint is what was written: every file's length and SHA-256, the files shared out over the ranks.

What a disk or a network refuses to show now says nothing of what was written: only other bytes are damage, and files
that rank 0 does not see.
"""

import errno
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from parallel.comm import Communicator
from train.checkpoint.manifest import DamagedCheckpoint, FileRecord, Manifest, UnreadableCheckpoint

THREADS = 4
"""Per rank: one hashes 1 to 2 GB/s, less than a good disk reads."""


@dataclass(frozen=True)
class _Found:
    """The first trouble of each kind on one rank; empty if there is none."""

    damage: str = ""
    unreadable: str = ""


def verify(checkpoint: Path, manifest: Manifest, comm: Communicator | None) -> None:
    """Compare the files of `checkpoint` with its `manifest`. Called by all ranks together, or without `comm` by one.

    Raises:
        DamagedCheckpoint: on every rank, if one finds other bytes, or rank 0 lacks a file.
        UnreadableCheckpoint: on every rank, if one cannot look.
    """
    # Largest first, one to each rank in turn: about the same number of bytes.
    names = sorted(manifest.files, key=lambda name: (-manifest.files[name].bytes, name))
    own = names[comm.rank :: comm.size] if comm else names
    missing = "" if comm and comm.rank else _missing(checkpoint, names)
    found = _Found(missing) if missing else _differing(checkpoint, manifest, own)
    of_all = comm.all_gather_object(found) if comm else [found]
    for one in of_all:
        if one.damage:
            raise DamagedCheckpoint(checkpoint, one.damage)
    for rank, one in enumerate(of_all):
        if one.unreadable:
            raise UnreadableCheckpoint(checkpoint, f"rank {rank}: {one.unreadable}")


def _missing(checkpoint: Path, names: Sequence[str]) -> str:
    try:
        there = set(os.listdir(checkpoint))
    except OSError as error:
        return error.strerror or "" if isinstance(error, FileNotFoundError) else ""  # whoever reads the files says it
    return next((f"{name}: {os.strerror(errno.ENOENT)}" for name in names if name not in there), "")


def _differing(checkpoint: Path, manifest: Manifest, names: Sequence[str]) -> _Found:
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda name: _difference(checkpoint / name, manifest.files[name]), names))
    damage = next((one.damage for one in found if one.damage), "")
    return _Found(damage, next((one.unreadable for one in found if one.unreadable), ""))


def _difference(path: Path, record: FileRecord) -> _Found:
    try:
        if (length := path.stat().st_size) != record.bytes:
            return _Found(f"{path.name} has {length:,} of {record.bytes:,} bytes")
        with path.open("rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == record.sha256
        return _Found() if same else _Found(f"{path.name} is not what was written")
    except OSError as error:
        return _Found(unreadable=f"{path.name}: {error.strerror}")
