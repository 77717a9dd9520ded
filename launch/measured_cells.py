"""A run's steps as a schedule's cells: what its ranks took of one micro-batch, and what the schedule should have taken.

forward, backward   time/compute_fwd_s, time/compute_bwd_s of its steady rows, over a step's micro-batches: means
                    over ranks, without waits; a backward is halved into inputs' and weights' gradients
all-to-all          the ranks' least time in kernels (on a host: operators) of kind ep in the last traced step; of a
                    run without a trace what was exposed, which is all of it if nothing hid any
attention           by FLOPs: what is not experts
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from conf.compose import read_job
from conf.schema import JobConfig
from launch.run_rows import read_rows, timed_rows
from models.config import ConfigError
from models.flops import flops_per_token
from parallel.mesh import Degrees
from parallel.pipeline.action import Schedule
from parallel.pipeline.cell_times import CellTimes
from parallel.pipeline.contest import Entry, enter
from parallel.pipeline.schedules import build_schedule
from parallel.pipeline.split import stage_shares
from train.data.atomic_json import read_json
from train.metrics.breakdown import mean_breakdown
from train.metrics.jsonl import METRICS_FILE
from train.metrics.label import label_of
from train.run_folder import read_config
from train.trace.tracer import TRACES

IN_CELLS = ("compute_fwd", "compute_bwd", "exposed_comm/ep", "exposed_comm/pp", "bubble")
"""Buckets of a step that a schedule on paper has."""


@dataclass(frozen=True)
class MeasuredRun:
    """What its folder says."""

    folder: Path
    job: JobConfig
    world_size: int
    device: str
    label: str | None
    breakdown: dict[str, float]
    traced_ep_s: float | None
    """All-to-alls of a step; None without a trace that has any."""

    @classmethod
    def read(cls, folder: Path) -> "MeasuredRun":
        """Of a run whose steps were divided into phases.

        Raises:
            ConfigError: if it is none.
        """
        for name in ("config.yaml", METRICS_FILE):
            if not (folder / name).exists():
                raise ConfigError(f"{folder} has no {name}: name the folder of a run that has logged steps")
        settings = read_config(folder / "config.yaml")
        breakdown = mean_breakdown(timed_rows(read_rows(folder), settings))
        if not breakdown.get("compute_fwd") or not breakdown.get("compute_bwd"):
            raise ConfigError(f"{folder} has no step that was divided into phases: train with measure=default")
        environment, job = settings["environment"], read_job(folder / "config.yaml")
        return cls(
            folder,
            job,
            environment["world_size"],
            environment["device"],
            label_of(settings),
            breakdown,
            _traced_ep_s(folder),
        )

    @cached_property
    def degrees(self) -> Degrees:
        """Of its layout."""
        return Degrees.resolve(self.job.strategy, self.world_size)

    @property
    def n_micro_batches(self) -> int:
        """Of a step, on each rank."""
        return self.job.train.micro_batches(self.degrees.dp, self.degrees.pp)

    @property
    def schedule(self) -> Schedule:
        """Its own."""
        strategy, pp = self.job.strategy, self.degrees.pp
        paired = self.job.overlap.forward_backward
        return build_schedule(strategy.schedule, pp, self.n_micro_batches, strategy.stages_per_rank, paired)

    @property
    def cells(self) -> CellTimes:
        """Seconds, of a rank's share of the model and a micro-batch of its own size."""
        n, model = self.n_micro_batches, self.job.model
        ep_s = self.breakdown.get("exposed_comm/ep", 0.0) if self.traced_ep_s is None else self.traced_ep_s
        backward = self.breakdown["compute_bwd"] / n
        experts = 18 * model.dim * model.moe.expert_dim * (model.moe.top_k + model.moe.n_shared)
        of_experts = (model.n_layers - model.n_dense_layers) * experts
        return CellTimes(
            self.breakdown["compute_fwd"] / n,
            backward / 2,
            backward / 2,
            ep_s / n / 2,
            attention=1 - of_experts / flops_per_token(model, self.job.data.sequence_length),
        )

    @property
    def measured_s(self) -> float:
        """Of a step, mean over ranks: what IN_CELLS has."""
        return sum(self.breakdown.get(bucket, 0.0) for bucket in IN_CELLS)

    def described(self) -> str:
        """Its layout, in words."""
        degrees, n = self.degrees, self.n_micro_batches
        name = self.job.strategy.schedule.value if degrees.pp > 1 else "accumulation"
        name += ", paired" if self.job.overlap.forward_backward else ""
        label = f", {self.label}" if self.label else ""
        return f"{name}, pp={degrees.pp} ep={degrees.ep}, {n} micro-batch{'es' if n > 1 else ''}{label}"

    def simulated(self, of: "MeasuredRun") -> Entry:
        """This run's step on paper, by the cells of another run (or its own).

        Raises:
            ConfigError: if the two do not run the same network on the same device.
        """
        ours, theirs = (replace(run.job.model, name="", init_from=None) for run in (self, of))
        if ours != theirs or self.device != of.device:
            raise ConfigError(f"{self.folder} has another model or device than {of.folder}: name runs of the same")
        times = with_ranks(of, self.degrees.ep) if self.degrees.ep != of.degrees.ep else of.cells
        times = times.scaled(self._share / of._share)
        schedule = self.schedule
        shares = stage_shares(self.job.model, schedule.n_stages, self.job.data.sequence_length)
        return enter(schedule, self.job.strategy.schedule, times, self.job.overlap.forward_backward, shares)

    @property
    def _share(self) -> float:
        """A micro-batch on a rank: tokens times its part of the model."""
        degrees, job = self.degrees, self.job
        return job.train.micro_batch(degrees.dp, degrees.pp) * job.data.sequence_length / (degrees.pp * degrees.tp)


def with_ranks(run: MeasuredRun, ep: int) -> CellTimes:
    """The cells of `run`, were its experts over `ep` ranks: of the rows (ep-1)/ep travel, as many bytes a second.

    Raises:
        ConfigError: if the run's own experts are over one rank.
    """
    was = run.degrees.ep
    if was == 1 and ep > 1:
        raise ConfigError(f"{run.folder} had strategy.ep=1, and ep={ep} takes all-to-alls: name a run that had some")
    return replace(run.cells, all_to_all=run.cells.all_to_all * (1 - 1 / ep) / (1 - 1 / was) if was > 1 else 0.0)


def _traced_ep_s(folder: Path) -> float | None:
    steps = sorted((folder / TRACES).glob("step-*"))
    summaries = [read_json(path) or {} for path in steps[-1].glob("*.summary.json")] if steps else []
    found = [summary.get("communication_by_kind_s", {}).get("ep") for summary in summaries]
    return min((seconds for seconds in found if seconds is not None), default=None)
