"""SLURM's commands, of a queue that holds what it is told to and runs nothing."""

import os
from pathlib import Path

import pytest

SBATCH = """#!/usr/bin/env bash
here=$(dirname "$0")
echo "$*" >> "$here/submitted"
grep -c . "$here/submitted"
"""
SCONTROL = """#!/usr/bin/env bash
here=$(dirname "$0")
if [[ -e "$here/state-$3" ]]; then cat "$here/state-$3"; exit; fi
if [[ -e "$here/unreachable" ]]; then
  echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2
else
  echo "slurm_load_jobs error: Invalid job id specified" >&2
fi
exit 1
"""


def slurm_stub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put them first in PATH. In `folder`, `submitted` has what was queued, `state-N` is what is said of job N, and
    with a file `unreachable` there is no answer."""
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder
