"""This rank's part of a checkpoint as files in torch.distributed.checkpoint's format, hashed as they are written.

The hash is of what was to be written, taken from memory: a disk that keeps something else is found out on reading.
torch's writer with several threads loses what goes wrong in all but one of them; so each file here has a writer of its
own, and a thread.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.filesystem import _StoragePrefix
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from train.checkpoint.hashing_files import HashingFiles
from train.checkpoint.manifest import FileRecord
from train.checkpoint.planner import ShardSavePlanner

MOST_FILES = 4
FILE_BYTES = 1 << 30
"""A rank writes one file for each, up to MOST_FILES side by side: hashing is slower than a good disk."""
METADATA_FILE = ".metadata"


def write_shards(
    folder: Path, rank: int, items: Sequence[WriteItem], planner: ShardSavePlanner
) -> tuple[list[WriteResult], dict[str, FileRecord]]:
    """Write `items`, the data of which `planner` knows, to new files in `folder`; on return the disk has them.

    Raises:
        OSError: if the disk takes no more.
    """
    parts = _divide(items, planner)

    def write(part: int) -> tuple[list[WriteResult], dict[str, FileRecord]]:
        files = HashingFiles()
        plan = SavePlan(parts[part], storage_data=_StoragePrefix(f"__{rank}_{part}_"))
        return _writer(folder, files).write_data(plan, planner).value(), files.records

    results: list[WriteResult] = []
    records: dict[str, FileRecord] = {}
    with ThreadPoolExecutor(MOST_FILES) as threads:
        for some, files in threads.map(write, range(len(parts))):
            results += some
            records |= files
    return results, records


def write_metadata(folder: Path, metadata: Metadata, results: list[list[WriteResult]]) -> dict[str, FileRecord]:
    """Write where in which file every box is, of all ranks' `results`. Raises OSError."""
    files = HashingFiles()
    _writer(folder, files).finish(metadata, results)
    (record,) = files.records.values()  # its name is still the one before the rename
    return {METADATA_FILE: record}


def _divide(items: Sequence[WriteItem], planner: ShardSavePlanner) -> list[list[WriteItem]]:
    sized = sorted(((planner.lookup_object(item.index).nbytes, item) for item in items), key=lambda pair: -pair[0])
    n = min(MOST_FILES, 1 + sum(size for size, _ in sized) // FILE_BYTES)
    parts: list[list[WriteItem]] = [[] for _ in range(n)]
    sizes = [0] * n
    for size, item in sized:
        least = sizes.index(min(sizes))
        parts[least].append(item)
        sizes[least] += size
    return [part for part in parts if part]


def _writer(folder: Path, files: HashingFiles) -> FileSystemWriter:
    # Nothing is to be copied ahead: that is for tensors on a GPU, and would wait for its compute stream.
    writer = FileSystemWriter(folder, sync_files=True, per_thread_copy_ahead=0)
    writer.fs = files
    return writer
