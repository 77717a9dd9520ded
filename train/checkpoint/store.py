"""The checkpoints of a run, behind the steps that follow.

    main thread   save: waits for the save before │ copies this rank's part │ goes on training          poll … finish
    its thread                                                              │ writes, hashes, commits │

torch.distributed.checkpoint's own async_save plans every save anew, which is Python for as long as training wants the
interpreter too, and neither hashes nor renames. Its format, planners and file writer are used, and not its `save`.

Nothing in a step draws random numbers (start, sample order and synthetic tokens are functions of the seed), so there is
no generator's state to keep.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import torch.distributed as dist

from models.config import ConfigError
from parallel.comm import Communicator
from parallel.engine import Engine
from train.checkpoint.background import Background
from train.checkpoint.folder import candidates, clear_unfinished, named, set_aside, step_of
from train.checkpoint.hooks import Hooks
from train.checkpoint.manifest import DamagedCheckpoint, Manifest, Progress, UnreadableCheckpoint
from train.checkpoint.save_plan import SavePlans
from train.checkpoint.staging import Staging
from train.checkpoint.tensors import load_tensors
from train.checkpoint.verify import verify
from train.checkpoint.writer import Outcome, Writer
from train.failure import FAILED, JobEnds
from train.faults.config import Place
from train.faults.stop import Cause, Stopped

PATIENCE = timedelta(hours=1)
"""How long a rank that has written, hashed or read its part waits for the slowest. Where training is held up meanwhile,
the shorter recovery.save_limit_s and recovery.load_limit_s end it; behind training nothing else does."""
T = TypeVar("T")


@dataclass(frozen=True)
class Resumed:
    """Where a job goes on."""

    progress: Progress
    """Step 0: from the start, there was no checkpoint."""
    passed_over: tuple[int, ...] = ()
    """Steps of newer checkpoints, which were damaged."""


class CheckpointStore:
    """The checkpoints of one run folder. All ranks call `save`, `resume` and `finish` together."""

    def __init__(self, folder: Path, comm: Communicator, *, behind: bool, hooks: Hooks | None = None) -> None:
        """Called by all ranks together. `behind`: write while training goes on, or hold it up until committed."""
        self._folder, self._comm, self._behind = folder, comm, behind
        self._hooks = hooks or Hooks()
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE)
        self._patient = Communicator(everyone=self._group)
        self._writer = Writer(self._patient, self._hooks)
        self._plans, self._staging = SavePlans(comm), Staging()
        self._running: Background[Outcome] | None = None
        self._last: Outcome | None = None
        self._blocked_s = 0.0
        self._metrics: dict[str, float] = {}

    def save(self, engine: Engine, progress: Progress, keep: int) -> None:
        """Save, and once it is committed drop all but the newest `keep` (0 keeps all). A save that fails is said in one
        line by rank 0, leaves those before it as they were, and training goes on."""
        entered = time.monotonic()
        self._settle()
        self._hooks.note("saving", step=progress.step)
        begun = time.monotonic()
        state = engine.weights() | engine.moments()
        plan = self._plans.plan(state)
        staged = self._staging.copy(state, [item.index.fqn for item in plan.items])
        final = named(self._folder, progress.step)
        work = partial(self._writer.write, final, plan, staged, progress, keep, begun)
        self._running = Background(work, name=f"checkpoint {progress.step}")
        if not self._behind:
            self._running.wait()
        self._blocked_s = time.monotonic() - entered

    @property
    def under_way(self) -> bool:
        """Whether `finish` would wait, as far as is known."""
        return self._running is not None

    def poll(self) -> None:
        """Take in what has become of a save; returns at once. Each rank by itself, between steps.

        Raises:
            Exception: what no disk did: a fault in the writing, or a rank of which it heard no more.
        """
        if self._running and self._running.done():
            self._settle()

    def finish(self, asked: int | None = None) -> None:
        """Wait for the save that is under way. `asked`: after which step the job is not to end without a checkpoint, if
        it tried to save one; None: after none.

        Raises:
            ConfigError: on every rank, if that one failed.
            Stopped: on every rank, if it was given up to a newer start of the job.
        """
        self._settle(ends=True, asked=asked)
        last = self._last
        if last and last.failure and last.step == asked:
            raise Stopped(Cause.fenced, asked, saved=False) if last.fenced else ConfigError(last.failure)

    def take_metrics(self) -> dict[str, float]:
        """ckpt/* of the last save that was committed since it was last asked; nothing if there was none."""
        metrics, self._metrics = self._metrics, {}
        return metrics

    def resume(self, engine: Engine) -> Resumed:
        """Load the newest checkpoint that is what was written, or do nothing: a new job. Of newer ones that are damaged
        rank 0 says so, and puts them aside.

        Raises:
            ConfigError: on every rank, if all are damaged, or one is of another model or a newer format.
            JobEnds: on every rank, if one cannot be read now: another start may.
        """
        self._settle()
        try:
            while True:
                found = self._from_rank_0(self._look)
                if resumed := self._load_newest(engine, found):
                    return resumed
        except UnreadableCheckpoint as error:
            raise JobEnds("failed", FAILED, str(error)) from error

    def _look(self) -> list[Path]:
        clear_unfinished(self._folder, self._hooks.attempt)
        return candidates(self._folder)

    def _load_newest(self, engine: Engine, found: list[Path]) -> Resumed | None:
        """As `resume`; None if one of `found` went away meanwhile: an older start may yet have dropped it."""
        damaged: list[DamagedCheckpoint] = []
        for checkpoint in reversed(found):
            try:
                progress = self._load(engine, checkpoint)
            except (DamagedCheckpoint, UnreadableCheckpoint) as error:
                if not self._from_rank_0(checkpoint.exists):
                    return None
                if isinstance(error, UnreadableCheckpoint):
                    raise
                damaged.append(error)
                continue
            self._put_aside(damaged, checkpoint)
            return Resumed(progress, tuple(step_of(error.checkpoint) for error in damaged))
        if damaged:
            each = "; ".join(f"{error.checkpoint.name}: {error.why}" for error in damaged)
            raise ConfigError(
                f"{self._folder} has no checkpoint that is not damaged ({each}): restore one, or start anew under "
                "another run.name"
            )
        return Resumed(Progress(step=0, tokens=0))

    def _load(self, engine: Engine, checkpoint: Path) -> Progress:
        manifest = self._from_rank_0(lambda: Manifest.read(checkpoint))
        verify(checkpoint, manifest, self._patient)
        self._hooks.reach(Place.load, 0)
        state = engine.weights() | engine.moments()
        load_tensors(state, checkpoint, group=self._group)
        engine.take_state(state, manifest.progress.updates)
        return manifest.progress

    def _from_rank_0(self, ask: Callable[[], T]) -> T:
        """What rank 0 finds, or fails with: on a network file system ranks may not see the same folder at the same
        moment."""
        found: T | ConfigError | None = None
        if self._patient.rank == 0:
            try:
                found = ask()
            except ConfigError as error:
                found = error
            except OSError as error:
                found = UnreadableCheckpoint(self._folder, error.strerror or str(error))
        found = self._patient.broadcast_object(found)
        if isinstance(found, ConfigError):
            raise found
        return cast(T, found)

    def _put_aside(self, damaged: list[DamagedCheckpoint], used: Path) -> None:
        if self._comm.rank == 0:
            for error in damaged:
                aside = set_aside(error.checkpoint)
                print(
                    f"switchyard: {error.checkpoint} is damaged ({error.why}): going on from {used.name} instead; "
                    f"it is kept as {aside.name}",
                    file=sys.stderr,
                )

    def _settle(self, ends: bool = False, asked: int | None = None) -> None:
        """Wait for the save that is under way, and take in its outcome. `ends`: the job does; of a failure of `asked`
        somebody else will speak."""
        if self._running is None:
            return
        running, self._running = self._running, None
        outcome = self._last = running.wait()
        if outcome.failure and outcome.step != asked and self._comm.rank == 0:
            then = "the job ends without it" if ends else "training goes on, and the next save tries again"
            print(f"switchyard: {outcome.failure}; {then}", file=sys.stderr)
        if not outcome.failure:
            self._metrics = {
                "ckpt/step": outcome.step,
                "ckpt/blocked_s": self._blocked_s,
                "ckpt/total_s": outcome.seconds,
                "ckpt/bytes": outcome.bytes,
                "ckpt/gb_per_sec": outcome.bytes / outcome.seconds / 1e9,
            }
