"""What the machine can do at best, measured once a folder, before the jobs."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.bench.ceilings import Ceilings
from launch.jobs.patient_run import run_to_end
from launch.local import rank_environment, torchrun_arguments
from train.data.atomic_json import read_json

DEVICE_FILE = "ceilings.json"
TIMEOUT_S = 300.0
"""Of one measurement: a few seconds on a device, most of them the start of a process."""


@dataclass(frozen=True)
class Machine:
    """Its ceilings, as far as they could be measured."""

    ceilings: Ceilings | None
    bus: dict[str, float]
    """GB/s by collective; empty on one rank."""
    complaints: list[str]
    """Why something is not there."""


def measure_machine(folder: Path, device: str, nproc: int, timeout_s: float = TIMEOUT_S) -> Machine:
    """Measure what `folder` does not hold yet, in processes of their own: their memory is free again afterwards.

    Nothing of it ends a comparison: what cannot be measured is left out, and said.
    """
    bus_file = f"bus-{nproc}.json"  # which ranks it is between
    complaints = []
    python = [sys.executable, "-m"]
    programs = {}
    if Ceilings.read(folder / DEVICE_FILE) is None:
        programs[DEVICE_FILE] = [*python, "launch.bench.ceilings"]
    if nproc > 1 and not (folder / bus_file).exists():
        programs[bus_file] = [*python, "launch.local", *torchrun_arguments(nproc, ["-m", "launch.bench.bus"])]
    for name, program in programs.items():
        command = [*program, device, str(folder / name)]
        if complaint := _complaint(command, os.environ | rank_environment(nproc), timeout_s):
            complaints.append(f"{name}: not measured{complaint}")
    return Machine(Ceilings.read(folder / DEVICE_FILE), read_json(folder / bus_file) or {}, complaints)


def _complaint(command: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> str:
    """Runs `command`; what went wrong, or nothing."""
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        try:
            exit_code = run_to_end(command, environment, output.fileno(), timeout_s)
        except subprocess.TimeoutExpired:
            return f" in {timeout_s:g} s"
        output.seek(0)
        return f": {(output.read().strip().splitlines() or ['no reason'])[-1]}" if exit_code else ""
