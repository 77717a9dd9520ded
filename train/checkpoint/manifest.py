"""What a checkpoint says of itself: how far the job was, and every file's length and SHA-256. Its presence, under a
final name, is the commit.

    {"sha256": of the rest, "format": 2, "progress": {…}, "files": {"__0_0_0.distcp": {"bytes": …, "sha256": …}, …}}
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.config import ConfigError

FORMAT = 2
MANIFEST_FILE = "manifest.json"
OLD_FILE = "progress.json"
"""Of format 1, which had no hashes."""


class DamagedCheckpoint(ConfigError):
    """A checkpoint that is not what was written."""

    def __init__(self, checkpoint: Path, why: str) -> None:
        super().__init__(f"{checkpoint} is damaged ({why}): move it away, or name another step-… folder")
        self.checkpoint, self.why = checkpoint, why

    def __reduce__(self) -> tuple[type["DamagedCheckpoint"], tuple[Path, str]]:
        return type(self), (self.checkpoint, self.why)


class UnreadableCheckpoint(ConfigError):
    """A checkpoint that cannot be read now, and may be whole all the same."""

    def __init__(self, checkpoint: Path, why: str) -> None:
        super().__init__(f"{checkpoint} cannot be read now ({why}): look after that file system, and start again")
        self.checkpoint, self.why = checkpoint, why

    def __reduce__(self) -> tuple[type["UnreadableCheckpoint"], tuple[Path, str]]:
        return type(self), (self.checkpoint, self.why)


@dataclass(frozen=True)
class Progress:
    """How far a job is: all that a resume needs beside tensors."""

    step: int
    """Optimizer steps done; the next one trains on samples [step·G, (step+1)·G)."""
    tokens: int
    """Tokens trained on."""
    skipped: int = 0
    """Of the steps, those whose updates were left out."""

    @property
    def updates(self) -> int:
        """What the optimizer has counted."""
        return self.step - self.skipped


@dataclass(frozen=True)
class FileRecord:
    """One file as it was written."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """See above."""

    progress: Progress
    files: Mapping[str, FileRecord]

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(record.bytes for record in self.files.values())

    def write(self, checkpoint: Path) -> None:
        """Write it to the disk. Raises OSError."""
        files = {name: asdict(record) for name, record in self.files.items()}
        record = {"format": FORMAT, "progress": asdict(self.progress), "files": files}
        with (checkpoint / MANIFEST_FILE).open("w") as file:
            file.write(json.dumps({"sha256": _digest(record)} | record, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def read(cls, checkpoint: Path) -> "Manifest":
        """Read a checkpoint's.

        Raises:
            DamagedCheckpoint: if it is gone or not what was written.
            UnreadableCheckpoint: if the disk does not tell.
            ConfigError: if another version of the program wrote it.
        """
        path = checkpoint / MANIFEST_FILE
        try:
            if not path.exists() and (checkpoint / OLD_FILE).exists():
                raise ConfigError(
                    f"{checkpoint} is of format 1, without hashes, and this program reads {FORMAT}: move it away, or "
                    "go on with the program that wrote it"
                )
            record: dict[str, Any] = json.loads(path.read_text())
            if record.pop("sha256") != _digest(record):  # before anything that it says is believed
                raise ValueError("its own hash differs")
            if record["format"] > FORMAT:
                raise ConfigError(
                    f"{checkpoint} has a newer format than this program reads ({FORMAT}): update switchyard"
                )
            files = {name: FileRecord(**entry) for name, entry in record["files"].items()}
            return cls(Progress(**record["progress"]), files)
        except ConfigError:
            raise
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DamagedCheckpoint(checkpoint, f"{MANIFEST_FILE}: {error.strerror}") from error
        except OSError as error:
            raise UnreadableCheckpoint(checkpoint, f"{MANIFEST_FILE}: {error.strerror}") from error
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise DamagedCheckpoint(checkpoint, f"{MANIFEST_FILE}: {error}") from error


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
