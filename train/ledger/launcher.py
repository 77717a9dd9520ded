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
    """When the launcher began, in the ledger's time; None if none said so on this boot. What it starts again inherits
    that, and says it again (job_axis.py): the start before may have died before it had a ledger."""
    boot, _, ns = environment.get(LAUNCHED, "").partition(" ")
    return int(ns) if ns.isdecimal() and boot == boot_id() else None


def submitted(environment: Mapping[str, str] = os.environ) -> int | None:
    """When the job was queued; None if it was not. Said again as `launched` is."""
    ns = environment.get(SUBMITTED, "")
    return int(ns) if ns.isdecimal() else None
