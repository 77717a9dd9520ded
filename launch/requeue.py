"""`python -m launch.requeue key=value …`: whether a job that a queue cut short shall queue again; launch/slurm.sbatch
asks. Exits 0 if it shall, and otherwise says why not and exits 1."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from conf.command_line import CommandLine
from conf.compose import compose
from models.config import ConfigError
from train.faults.stop import STOP_FILE
from train.faults.watch.stamps import read_events
from train.ledger.events import attempt_folder, attempts
from train.run_folder import named_folder

FRUITLESS = 3
"""So many attempts in a row without a new checkpoint are a loop that gets nowhere."""

CUT_SHORT = ("preempted", "lost_peers")
"""Last words of ranks whose job was; a rank that was killed has none."""


def why_not(folder: Path) -> str | None:
    """Why the job of this run folder shall not queue again; None if it shall."""
    if (folder / STOP_FILE).exists():
        return f"{folder / STOP_FILE} asks it to stop"
    last = attempts(folder)[-FRUITLESS:]
    for rank, cause in _ends(attempt_folder(folder, last[-1])) if last else []:
        if cause not in CUT_SHORT:
            return f"rank {rank} ended by itself ({cause}), and would do so again"
    if len(last) == FRUITLESS and not any(_saved(attempt_folder(folder, attempt)) for attempt in last):
        return f"its last {FRUITLESS} attempts saved nothing: set checkpoint.every to fewer steps, or --time to more"
    return None


def _ends(attempt: Path) -> Iterator[tuple[int, str]]:
    """Last words of its ranks, of those that had any."""
    for path in sorted(attempt.glob("rank-*.jsonl")):
        for event in read_events(path):
            if event["ev"] == "exit":
                yield int(path.stem.removeprefix("rank-")), event["cause"]


def _saved(attempt: Path) -> bool:
    return any(event["ev"] == "committed" for event in read_events(attempt / "rank-00000.jsonl"))


def main(words: Sequence[str]) -> int:
    """See above."""
    try:
        line = CommandLine.parse(words, program="python -m launch.requeue")
        folder = named_folder(compose(line.overrides, line.config_dir).config.run)
    except ConfigError as error:
        print(f"switchyard: {error}", file=sys.stderr)
        return 1
    if folder and (why := why_not(folder)):
        print(f"switchyard: not queued again: {why}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
