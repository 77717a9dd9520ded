"""What the machine can do at best, measured once a folder, before the jobs."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from launch.bench.ceilings import Ceilings
from launch.local import rank_environment, torchrun_arguments
from train.data.atomic_json import read_json

DEVICE_FILE, BUS_FILE = "ceilings.json", "bus.json"
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


def measure_machine(folder: Path, device: str, nproc: int) -> Machine:
    """Measure what `folder` does not hold yet, in processes of their own: their memory is free again afterwards.

    Nothing of it ends a comparison: what cannot be measured is left out, and said.
    """
    complaints = []
    python = [sys.executable, "-m"]
    programs = {DEVICE_FILE: [*python, "launch.bench.ceilings"]}
    if nproc > 1:
        programs[BUS_FILE] = [*python, "launch.local", *torchrun_arguments(nproc, ["-m", "launch.bench.bus"])]
    for name, program in programs.items():
        if not (folder / name).exists():
            command = [*program, device, str(folder / name)]
            environment = os.environ | rank_environment(nproc)
            try:
                done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
            except subprocess.TimeoutExpired:
                complaints.append(f"{name}: not measured in {TIMEOUT_S:g} s")
                continue
            if done.returncode:
                complaints.append(f"{name}: not measured: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
    read = read_json(folder / DEVICE_FILE)
    return Machine(Ceilings(**read) if read else None, read_json(folder / BUS_FILE) or {}, complaints)
