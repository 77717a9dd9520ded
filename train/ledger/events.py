"""What is written to a run's ledger, so that no death loses what a rank-second went to. This docstring is the protocol.

    runs/NAME/ledger/attempt-0001/rank-00003.jsonl     by rank 3 itself
                                  watch-00003.jsonl    by the watcher beside it, which outlives it
                                  beat-00003           what rank 3 is at, in place; no part of the books

Append-only JSON lines: one event, one write(2) to an O_APPEND descriptor, so SIGKILL loses no event that was written.
A host's death or a full disk can tear a line, and a reader drops what does not parse; what a full disk refuses waits in
memory for the next event (line_file.py), and SIGKILL loses that. Synced at an attempt's start and end and when a
checkpoint is committed. A start of a job is an attempt; its number is one more than the largest there is, taken by
making its folder, which one process alone can do.

Every event has `ev` and `t`, and times are integers: nanoseconds of the host's CLOCK_BOOTTIME, which setting the clock
does not move, and which two attempts on one boot of one host share (`boot`). Within an attempt hosts are related by
`joined`, one moment for all its ranks; attempts that share no boot are by the wall clock (`wall`). `process` is from
/proc/self/stat, 10 ms fine.

A rank's attempt is tiled: every moment of it is in one part, which ends where the next begins.

    launched    process     main        joined                                                            gone
    ├init_process───────────┼─init_dist─┼─tile init_model─┼─tile ckpt_load─┼─tile steps─┼─tile ckpt_save─┼─…─┤
    (launcher's stamp, if there is one)

    start       rank, ranks, host, boot, wall, process, main, joined, agent|null, launched|null, submitted|null, layout,
                tokens_per_step, flops_per_token, peak_flops
                    the first line. `peak_flops`: of one rank's device. `submitted`: wall clock, when it was queued.
                    `agent`: the torchrun that started the rank
    resumed     step, passed_over [step…]       loaded (step 0: nothing was there); newer checkpoints that are damaged
    tile        begin, buckets {name: ns}       [begin, t]; what its buckets leave of it is `other`
      of steps  and first, last, step_ns [ns…]  the device was drained at both ends. step_ns: each step's own phases
    skipped     step                            its update was left out: it was not finite
    rollback    step, cause, passed_over [step…]  went back to the checkpoint after `step`, as a resume does
    saving      step                            a save begins, on every rank; its tile says what it held up
    committed   step, bytes, seconds            rank 0: it is whole and has its name; seconds from its begin
    unsaved     step, why                       it failed
    stop        cause                           agreed by all ranks: preempted, stopped
    exit        cause, code                     last words: finished, preempted, stopped, failed, refused, diverged,
                                                fenced, interrupted, lost_peers. code 143: its time to end ran out
    hang        phase, limit_s, beat {phase, step, t}    by the watcher: longer at it than it may be; now it kills
    gone        beat {phase, step, t}                    by the watcher: the process is no more

Checkpoints are saved where a tile of steps has ended, so a resume never takes back a part of a tile.
"""

import os
import re
import signal
import time
from pathlib import Path

KILLED = 128 + signal.SIGTERM
"""The exit code of a rank that ended without order, its time after SIGTERM being over: the shell's for SIGTERM."""
LEDGER = "ledger"
"""In the run's folder."""


def now_ns() -> int:
    """The time of all events."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def process_started_ns(pid: int | None = None) -> int:
    """When process `pid` began, by the same clock; None: this one. Raises OSError: there is none."""
    with open(f"/proc/{pid or 'self'}/stat") as file:
        ticks = int(file.read().rpartition(")")[2].split()[19])
    return ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def boot_id() -> str:
    """Of this boot of this host: within it, times compare."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def attempt_folder(run_folder: Path, attempt: int) -> Path:
    """Where an attempt's files are."""
    return run_folder / LEDGER / f"attempt-{attempt:04d}"


def attempts(run_folder: Path) -> list[int]:
    """Numbers of a run's attempts, in order."""
    ledger = run_folder / LEDGER
    names = os.listdir(ledger) if ledger.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"attempt-(\d+)", name)))


def take_attempt(run_folder: Path) -> int:
    """Make the next attempt's folder: it is this caller's alone. Raises OSError."""
    while True:
        number = max(attempts(run_folder), default=0) + 1
        try:
            attempt_folder(run_folder, number).mkdir(parents=True)
        except FileExistsError:
            continue
        return number
