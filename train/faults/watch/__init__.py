"""A small process beside each rank, which outlives it: it stamps the rank's end, and kills it where it hangs.

    rank 3                                  its watcher (python -S -P -m train.faults.watch, no torch in it)
    beat-00003 at every phase    ─────────> reads it, and those of the host's other ranks, twice a second
    dumps all its stacks         <───────── SIGUSR1: longer in a phase than the phase's limit, or another rank is
    stacks-00003.txt
    is killed                    <───────── SIGKILL, if no other rank of the host is in its phase for longer
    is no more                   ─────────> writes `gone` to watch-00003.jsonl, and ends

A rank that hangs has all others waiting for it, and these are overdue with it: the one whose phase is oldest is to
blame, or the one that is stopped by a signal. Others are left to torchrun, which ends the job when one rank is dead.
"""
