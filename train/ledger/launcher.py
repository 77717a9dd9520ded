"""What launchers stamp before there is a process of ours, in the environment (launch/local.py, launch/slurm.sbatch)."""

import os
from collections.abc import Mapping

from train.ledger.events import boot_id, now_ns

LAUNCHED = "SWITCHYARD_LAUNCHED"
"""When this host's launcher began: the boot's id, and CLOCK_BOOTTIME in ns. Of use on that boot alone."""
SUBMITTED = "SWITCHYARD_SUBMITTED"
"""When a queue got the job: the wall clock, in ns."""


def stamp() -> dict[str, str]:
    """The variable that says that a launcher begins now."""
    return {LAUNCHED: f"{boot_id()} {now_ns()}"}


def launched(environment: Mapping[str, str] = os.environ) -> int | None:
    """When the launcher began, in the ledger's time; None if none said so on this boot, or it was a restart ago."""
    boot, _, ns = environment.get(LAUNCHED, "").partition(" ")
    restarted = environment.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    return int(ns) if ns.isdecimal() and boot == boot_id() and not restarted else None


def submitted(environment: Mapping[str, str] = os.environ) -> int | None:
    """When the job was queued; None if it was not, or not for this attempt."""
    ns = environment.get(SUBMITTED, "")
    restarted = environment.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    return int(ns) if ns.isdecimal() and not restarted else None
