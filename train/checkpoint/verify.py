"""Whether a checkpoint is what was written: every file's length and SHA-256, the files shared out over the ranks."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from parallel.comm import Communicator
from train.checkpoint.manifest import DamagedCheckpoint, FileRecord, Manifest

THREADS = 4
"""Per rank: one hashes 1 to 2 GB/s, less than a good disk reads."""


def verify(checkpoint: Path, manifest: Manifest, comm: Communicator | None) -> None:
    """Compare the files of `checkpoint` with its `manifest`. Called by all ranks together, or without `comm` by one.

    Raises:
        DamagedCheckpoint: on every rank, if one finds anything else.
    """
    # Largest first, one to each rank in turn: about the same number of bytes.
    names = sorted(manifest.files, key=lambda name: (-manifest.files[name].bytes, name))
    own = names[comm.rank :: comm.size] if comm else names
    found = _differing(checkpoint, manifest, own)
    for trouble in comm.all_gather_object(found) if comm else [found]:
        if trouble:
            raise DamagedCheckpoint(checkpoint, trouble)


def _differing(checkpoint: Path, manifest: Manifest, names: Sequence[str]) -> str:
    """What is wrong with the first file of `names` that is not as written; nothing if all are."""
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda name: _difference(checkpoint / name, manifest.files[name]), names)
        return next(filter(None, found), "")


def _difference(path: Path, record: FileRecord) -> str:
    try:
        if (length := path.stat().st_size) != record.bytes:
            return f"{path.name} has {length:,} of {record.bytes:,} bytes"
        with path.open("rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == record.sha256
        return "" if same else f"{path.name} is not what was written"
    except OSError as error:
        return f"{path.name}: {error.strerror}"
