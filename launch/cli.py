"""`switchyard COMMAND …`: what a user types around a run."""

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

from models.config import ConfigError

USAGE = """\
switchyard train [nproc=N] [restarts=K] [key=value …]   start N ranks on this machine and train, and again after a
    failure (see switchyard train --help)
switchyard verify [nproc=N] [strategy=NAME,… | all] [key=value …]   a layout beside one process, on this machine
switchyard bench to=FOLDER [nproc=N] [rounds=3] [peer=transformers] strategy=NAME,… [key=value,… …]
    tokens/s, MFU, memory and where a step goes, point beside point (see switchyard bench --help)
switchyard sweep sweep.dir=FOLDER [nproc=N] strategy=NAME,… [key=value,… …]   a job for each combination, resumable
    [--slurm nodes=N gpus_per_node=G …]        and a page that compares them (see switchyard sweep --help)
switchyard report RUN… [to=FILE.html]      that page for any runs, or for all of a sweep or bench
switchyard overlap KNOB[,KNOB …] | --all to=FOLDER [nproc=N] [rounds=3] strategy=NAME [key=value …]
    what a setting of overlap.* hides: jobs with it off and on (see switchyard overlap --help)
switchyard submit nodes=N gpus_per_node=G [key=value …]   look the words over, then queue them with SLURM's sbatch
    [--dry-run] [--partition=P --time=T …] (see switchyard submit --help)
switchyard tokenize to=FOLDER [data.key=value …]   text into tokens, once (see switchyard tokenize --help)
switchyard show RUN                        what a run did: its table and its loss curve
switchyard goodput RUN [--json]            what every rank-second went to, over all starts, crashes and pauses
    [--svg FILE] [--png FILE]              of a run that goes on, has ended or died; and how often to save
switchyard trace RUN|FILE…                 what hid what in the steps of a run that were traced, or in a trace file
switchyard export RUN --format hf          its weights for Hugging Face transformers, in RUN/hf
    [--to FOLDER] [--dtype DTYPE]          DTYPE is float32 (exact), or bfloat16 or float16 (half the size)
    [--shard-size 5GB]                     RUN may be a step-… folder in a run's checkpoints/ too
switchyard schedule NAME pp=P microbatches=M   draw and time a pipeline schedule: gpipe, 1f1b, interleaved_1f1b,
    [stages_per_rank=V]                        interleaved_zero_bubble, zbv, dualpipev, dualpipe
    [forward=1 input=1 weight=1 pair=3 send=0] [--svg FILE] [--png FILE]
switchyard schedule compare pp=P,… microbatches=M,… [cells=RUN] [ep=N] [measured=RUN,…] [--svg FILE]   all of them on
    [forward=1 input=1 weight=1 all_to_all=0.5 send=0 attention=0.5] [stages_per_rank=V]   paper, in tables

nproc=N is the number of ranks: by default one per GPU, or 2 on a machine without.
"""

COMMANDS = {
    "train": "launch.local",
    "verify": "launch.verify.command",
    "bench": "launch.bench.command",
    "sweep": "launch.sweep.command",
    "report": "launch.report.command",
    "overlap": "launch.overlap.command",
    "submit": "launch.submit",
    "tokenize": "launch.tokenize",
    "show": "launch.show",
    "goodput": "launch.goodput.command",
    "trace": "launch.trace",
    "export": "launch.export",
    "schedule": "launch.schedule",
}
"""The module of each, which has a function of its name that takes the words and returns the exit code. Imported once it
is asked for: what all of them need together takes seconds."""
HELP = ("--help", "-h")
OWN_HELP = {"train", "verify", "bench", "sweep", "overlap", "submit", "tokenize"}
"""Commands that have more to say about themselves than USAGE does."""


def main(words: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code: 2 for what must be typed differently, otherwise the command's own."""
    command, *rest = (sys.argv[1:] if words is None else list(words)) or [""]
    if command in HELP or (command in COMMANDS.keys() - OWN_HELP and any(word in HELP for word in rest)):
        print(USAGE, end="")
        return 0
    try:
        if command not in COMMANDS:
            raise ConfigError(_unknown(command))
        code: int = getattr(import_module(COMMANDS[command]), command)(rest)
        return code
    except ConfigError as error:
        print(f"switchyard: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _unknown(command: str) -> str:
    close = difflib.get_close_matches(command, COMMANDS, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    said = f"no command {command!r}" if command else "no command given"
    return f"{said}; {hint}choose from {', '.join(COMMANDS)} (switchyard --help)"


if __name__ == "__main__":
    sys.exit(main())
