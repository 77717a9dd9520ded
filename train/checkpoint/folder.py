"""Names in a run's folder of checkpoints, and what they mean.

step-00000100                   after step 100; with a manifest in it, committed
step-00000100.attempt-0003.tmp  being written by the job's third start, or never finished
step-00000100.old.tmp           gives its name up to another, of steps that were done again; or did, and is to go
step-00000100.dropped.tmp       being deleted
step-00000100.damaged           was found not to be what was written; kept for whoever wants to look, read by nobody

Whatever ends in .tmp a resume clears away, but for what a newer start writes.
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

REPLACED = ".old.tmp"


def named(folder: Path, step: int) -> Path:
    """The checkpoint after `step`."""
    return folder / f"step-{step:08d}"


def temporary(final: Path, attempt: int) -> Path:
    """Where a start of the job writes `final`: two that do not know of each other write apart."""
    return final.with_name(f"{final.name}.attempt-{attempt:04d}.tmp")


def candidates(folder: Path) -> list[Path]:
    """All that bear a checkpoint's name, whole or not, oldest first."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in found if re.fullmatch(r"step-\d+", path.name)), key=step_of)


def committed(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return [path for path in candidates(folder) if (path / MANIFEST_FILE).exists()]


def newest_checkpoint(folder: Path) -> Path | None:
    """The one that a resume looks at first, whole or not; None: a new job."""
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

    One of that name (of steps that were taken back) keeps it until this one is there to take it, but for an instant; it
    has it again if this one does not get it, and at the next resume if nothing was left to give it back.
    """
    sync_folder(written)
    replaced = final.with_name(final.name + REPLACED)
    if replaces := final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    try:
        written.rename(final)
    except OSError:
        if replaces:
            with suppress(OSError):
                replaced.rename(final)
        raise
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
            doomed = path if path.suffix == ".tmp" else path.rename(path.with_name(path.name + ".dropped.tmp"))
            shutil.rmtree(doomed, ignore_errors=True)


def clear_unfinished(folder: Path, attempt: int) -> None:
    """Have one that was to be replaced back where nothing replaced it; delete what starts up to `attempt` have not
    finished."""
    for replaced in folder.glob(f"step-*{REPLACED}"):
        final = replaced.with_name(replaced.name.removesuffix(REPLACED))
        if not final.exists():
            with suppress(OSError):
                replaced.rename(final)
    drop(path for path in folder.glob("step-*.tmp") if _writing_attempt(path) <= attempt)


def _writing_attempt(path: Path) -> int:
    match = re.search(r"\.attempt-(\d+)\.tmp$", path.name)
    return int(match[1]) if match else 0


def sync_folder(folder: Path) -> None:
    """Have the names in `folder` on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
