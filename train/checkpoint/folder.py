"""Names in a run's folder of checkpoints, and what they mean.

step-00000100          after step 100; with a manifest in it, committed
step-00000100.tmp      being written, or never finished, or being deleted; a resume clears it away
step-00000100.damaged  was found not to be what was written; kept for whoever wants to look, read by nobody
"""

import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from itertools import count
from pathlib import Path

from models.config import ConfigError
from train.checkpoint.manifest import MANIFEST_FILE


def named(folder: Path, step: int) -> Path:
    """The checkpoint after `step`."""
    return folder / f"step-{step:08d}"


def temporary(final: Path) -> Path:
    """Where `final` is written."""
    return final.with_name(final.name + ".tmp")


def candidates(folder: Path) -> list[Path]:
    """All that bear a checkpoint's name, whole or not, oldest first."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in found if re.fullmatch(r"step-\d+", path.name)), key=step_of)


def committed(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return [path for path in candidates(folder) if (path / MANIFEST_FILE).exists()]


def newest_checkpoint(folder: Path) -> Path | None:
    """The last that a resume would look at: nothing there is a new job."""
    found = candidates(folder)
    return found[-1] if found else None


def step_of(checkpoint: Path) -> int:
    """After which step it was saved."""
    return int(checkpoint.name.removeprefix("step-"))


def check_steps_left(folder: Path, steps: int) -> None:
    """Refuse a job of `steps` steps whose checkpoints in `folder` are past the last one.

    Raises:
        ConfigError: naming the step that was reached.
    """
    newest = newest_checkpoint(folder)
    if newest and (done := step_of(newest)) > steps:
        raise ConfigError(
            f"train.steps={steps}, and {newest} is after step {done}: set it to at least {done}, "
            "or name another run.name"
        )


def put_in_place(written: Path, final: Path) -> None:
    """Give a whole checkpoint its name, on the disk too. Raises OSError.

    One of that name (of steps that were taken back) keeps it until this one is there to take it, but for an instant.
    """
    sync_folder(written)
    replaced = final.with_name(final.name + ".old.tmp")
    if final.exists():
        final.rename(replaced)
    written.rename(final)
    sync_folder(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def set_aside(checkpoint: Path) -> Path:
    """Rename a damaged one so that no reader looks at it; where it is now, which is where it was if that fails."""
    for number in count(1):
        aside = checkpoint.with_name(checkpoint.name + ".damaged" + (f"-{number}" if number > 1 else ""))
        if not aside.exists():
            break
    with suppress(OSError):
        return checkpoint.rename(aside)
    return checkpoint


def drop(checkpoints: Iterable[Path]) -> None:
    """Delete folders, by a name first that no reader looks at: a kill half-way leaves nothing that looks whole."""
    for path in list(checkpoints):
        with suppress(OSError):  # what a network file system holds on to goes at the next resume
            doomed = path if path.suffix == ".tmp" else path.rename(temporary(path))
            shutil.rmtree(doomed, ignore_errors=True)


def clear_unfinished(folder: Path) -> None:
    """Delete what was never finished."""
    drop(folder.glob("step-*.tmp"))


def sync_folder(folder: Path) -> None:
    """Have the names in `folder` on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
