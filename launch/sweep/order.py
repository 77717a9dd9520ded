"""The words after `switchyard sweep`, sorted."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conf.command_line import CommandLine
from conf.options import Options
from conf.schema import JobConfig
from launch.jobs.own_words import refuse_run_folders, take_own, truth
from launch.jobs.points import Point, check_names, points_of
from launch.jobs.points_composed import compose_points, look_over
from launch.jobs.typed_path import typed_path
from launch.local import take_nproc
from launch.submit import Order as Submission
from launch.submit import check_submitted
from launch.sweep.point_job import PointJob
from models.config import ConfigError

PROGRAM = "switchyard sweep sweep.dir=FOLDER [nproc=N]"
HELP = """
  sweep.dir=FOLDER   results.csv, report.html and the runs go there; the same words again do what is not done yet
  strategy=fsdp,ep   a point for each combination of values, as Hydra reads them: with commas, 'train.seed=range(1,4)',
                     'strategy=glob(pp*)' (of a group's options); the quotes are for the shell
  retry=true         runs again, from its beginning, what failed
  --slurm nodes=N gpus_per_node=G [--partition=P …]
                     each point a job of SLURM, as switchyard submit has it; the same words later collect
  --dry-run          with --slurm: prints the sbatch commands, and queues nothing
"""
OURS = {"sweep.dir": None, "retry": "false"}
SLURM = "--slurm"
RENAME = "values name points, by their letters, digits and ._+; sweep those that look alike in folders of their own"


@dataclass(frozen=True)
class SweepOrder:
    """A sweep, its words found good."""

    folder: Path
    jobs: list[PointJob]
    swept: list[str]
    """Keys that have several values."""
    retry: bool
    submission: Submission | None
    """On which nodes; None: on this machine."""
    yaml: str | None
    """All configurations, if they were asked for and nothing else."""

    @classmethod
    def parse(cls, words: Sequence[str]) -> "SweepOrder":
        """Sort `words`, and look every point over. A word that no job takes is the user's slip and ends it; a
        combination that cannot run is a result: it is kept, as refused.

        Raises:
            ConfigError: for such a word, and where no combination can run; `SystemExit` after `--help`.
        """
        submission = None
        if {"--help", "-h"} & set(words):
            words = ["--help"]
        elif SLURM in words:
            submission = Submission.parse([word for word in words if word != SLURM])
            words = submission.job_words
        line = CommandLine.parse(words, PROGRAM, HELP)
        if submission and any(word.startswith("nproc=") for word in line.overrides):
            raise ConfigError("nproc= is for this machine: with --slurm write nodes=N gpus_per_node=G")
        nproc, rest = take_nproc(line.overrides)
        given, rest = take_own(rest, OURS)
        if not given["sweep.dir"]:
            raise ConfigError("where do results go? write sweep.dir=FOLDER")
        refuse_run_folders(rest, "sweep", "sweep.dir=FOLDER")
        folder = typed_path(f"sweep.dir={given['sweep.dir']}", given["sweep.dir"])
        group = re.sub(r"[^\w.+-]+", "_", folder.name) or "sweep"
        defaults = {"logging.wandb_group": group, "measure.expert_load": "true"}
        points = points_of(rest, None, Options.find(line.config_dir), defaults)
        check_names(points, RENAME)
        composed = compose_points(points, line.config_dir)
        flags = ["--config-dir", str(line.config_dir.resolve())] if line.config_dir else []
        n_ranks = submission.nodes * submission.ranks_per_node if submission else nproc
        jobs = [
            PointJob(
                name=point.name,
                words=(*point.words, *flags),
                runs=folder / "runs",
                nproc=n_ranks,
                point=point,
                refusal=None if line.print_config else _refusal(composed[point.name].config, nproc, submission),
            )
            for point in points
        ]
        if all(job.refusal for job in jobs):
            which = f"none of {len(jobs)} points can run; {jobs[0].name}: " if len(jobs) > 1 else ""
            raise ConfigError(f"{which}{jobs[0].refusal}")
        text = "".join(f"# {name}\n{one.yaml}" for name, one in composed.items()) if line.print_config else None
        return cls(folder, jobs, _swept(points), truth("retry", given["retry"]), submission, text)


def _refusal(config: JobConfig, nproc: int, submission: Submission | None) -> str | None:
    try:
        if submission:
            check_submitted(config, submission)
        else:
            look_over(config, nproc)
    except ConfigError as error:
        return str(error)
    return None


def _swept(points: Sequence[Point]) -> list[str]:
    return list(dict.fromkeys(key for point in points for key in point.values))
