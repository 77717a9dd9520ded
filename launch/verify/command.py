"""`switchyard verify strategy=NAME nproc=N [key=value …]`: a layout beside one process, before a cluster is rented.

The configured model, scaled down, is trained for a few steps on random tokens under the layout, and by one process on
the same tokens; losses, gradient norms, every gradient and updated weight, and the experts' counts are compared. In
float64: a correct layout agrees to 1e-15, and in float32 a token that changes its expert would make it look wrong.
Engines of other libraries lack it; they are compared in float32, with every token's experts pinned to those that one
process chose: losses, norms and the first step's gradients.
"""

import sys
from collections.abc import Sequence

from omegaconf import OmegaConf
from rich.progress import Progress, TextColumn

from conf.command_line import CommandLine
from conf.compose import compose
from conf.options import Options
from conf.overrides import typed_value
from launch.clean_end import ended_cleanly
from launch.local import take_nproc
from launch.table_console import table_console
from launch.verify.job import Job
from launch.verify.report import print_verdicts
from launch.verify.verdict import References, judge
from models.config import ConfigError
from parallel.world import Launch, choose_device
from train.config import Device


def verify(words: Sequence[str]) -> int:
    """Verify each strategy that `words` name (`strategy=tp`, `strategy=ddp,fsdp`, `strategy=all`) and print a table.

    Returns:
        0 if every one of them equals one process, 1 if one does not.

    Raises:
        ConfigError: for words that no job would take, before a process is started.
    """
    line = CommandLine.parse(words, program="switchyard verify [nproc=N] [strategy=NAME,NAME,… or all]")
    nproc = take_nproc(line.overrides)[0] if any(word.startswith("nproc=") for word in line.overrides) else None
    names = strategies(typed_value("strategy", line.overrides), line)
    rest = [word for word in line.overrides if not word.startswith(("nproc=", "strategy="))]
    jobs: list[Job] = []
    impossible: dict[str, str] = {}
    for name in names:
        try:
            jobs.append(Job.compose(name, rest, line.config_dir, nproc))
        except ConfigError as error:
            if len(names) == 1:
                raise
            if typed_value("strategy", line.overrides) != "all":
                raise ConfigError(f"{name}: {error}") from error
            impossible[name] = str(error)
    if not jobs:
        raise ConfigError(next(iter(impossible.values())))
    if line.print_config:
        for job in jobs:
            print(f"# {job.name} on {job.n_ranks} ranks, as it is compared")
            print(OmegaConf.to_yaml(OmegaConf.structured(job.scaled)), end="")
        return 0
    device = "cuda" if jobs[0].scaled.train.device is Device.cuda else "cpu"
    most = max(job.n_ranks for job in jobs)
    choose_device(device, Launch(0, most, 0, most, launched=False))
    if len(jobs) == 1:
        jobs[0].check_device(device)
    console = table_console()
    references = References(device)
    verdicts = []
    with ended_cleanly(), Progress(TextColumn("{task.description}"), console=console, transient=True) as progress:
        task = progress.add_task("")
        for job in jobs:
            progress.update(task, description=f"{job.name} on {job.n_ranks} ranks")
            verdicts.append(judge(job, device, references))
    print_verdicts(verdicts, impossible, console)
    for verdict in verdicts:
        if verdict.trace:
            print(f"{verdict.job.name}:\n{verdict.trace}", file=sys.stderr)
    return 0 if all(verdict.equal or verdict.elsewhere for verdict in verdicts) else 1


def strategies(typed: str | None, line: CommandLine) -> list[str]:
    """The names in `typed`, one or several with commas, or all there are; without it, the default's.

    Raises:
        ConfigError: for a name that is none.
    """
    options = Options.find(line.config_dir)
    if typed is None:
        return [compose([], line.config_dir).config.strategy.name]
    if typed == "all":
        return list(options.files["strategy"])
    for name in (names := typed.split(",")):
        if name not in options.files["strategy"]:
            raise ConfigError(options.unknown("strategy", name))
    return names
