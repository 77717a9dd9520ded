"""Start the ranks of one job on this machine, through torchrun."""

import os
import sys
from collections.abc import Sequence

import torch
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from conf.command_line import CommandLine
from conf.compose import compose
from conf.schema import validate
from launch.ranks import code_environment, take_count
from train.faults.parent import die_with_parent
from train.ledger.launcher import stamp


def train(words: Sequence[str]) -> int:
    """`switchyard train [nproc=N] [restarts=K] key=value …`: check the words, then be torchrun until the job ends.

    Returns:
        0, or the exit code of the rank that ended the job, or 128 + the signal that ended this process.

    Raises:
        ConfigError: for words that no rank would take, before one is started.
    """
    nproc, rest = take_nproc(words)
    restarts, rest = take_count(rest, "restarts", "times that ranks are started again after a failure")
    line = CommandLine.parse(rest, program="switchyard train [nproc=N] [restarts=K]")
    composed = compose(line.overrides, line.config_dir)
    if line.print_config:
        print(composed.yaml, end="")
        return 0
    validate(composed.config, nproc)
    os.environ |= rank_environment(nproc)
    return be_torchrun(torchrun_arguments(nproc, ["-m", "train", *rest], restarts))


def be_torchrun(arguments: Sequence[str]) -> int:
    """torchrun with `arguments`, in this process, without its own account of a failure: the rank has said why.

    Returns:
        0, or the exit code of the rank that ended the job, or 128 + the signal that ended this process.
    """
    try:
        torchrun.run(torchrun.parse_args(list(arguments)))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as stop:
        return 128 + stop.sigval
    return 0


def take_nproc(words: Sequence[str]) -> tuple[int, list[str]]:
    """The value of the last `nproc=N` among `words`, or its default; and the other words.

    Raises:
        ConfigError: unless N is a number of at least 1.
    """
    nproc, rest = take_count(words, "nproc", "ranks")
    return nproc or torch.cuda.device_count() or 2, rest


def rank_environment(nproc: int) -> dict[str, str]:
    """What the ranks' environment has besides ours: a share of the cores, unless the user has set it, our code, and
    that they are launched now."""
    threads = max(1, len(os.sched_getaffinity(0)) // nproc)
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)), **code_environment(), **stamp()}


def torchrun_arguments(nproc: int, program: Sequence[str], restarts: int | None = None) -> list[str]:
    """What to tell torchrun to start `nproc` ranks of `python program…` (`-m train words…`) on this machine, and up to
    `restarts` times again where one of them fails."""
    again = [f"--max-restarts={restarts}"] if restarts else []
    return ["--standalone", f"--nproc-per-node={nproc}", *again, *program]


if __name__ == "__main__":  # for a command that starts jobs and goes on
    die_with_parent()  # killed, it ends no job: one that went on would be in the way of the next
    sys.exit(be_torchrun(sys.argv[1:]))
