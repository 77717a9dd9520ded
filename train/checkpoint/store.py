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
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch.distributed as dist

from models.config import ConfigError
from parallel.comm import Communicator
from parallel.engine import Engine
from train.checkpoint.background import Background
from train.checkpoint.folder import candidates, clear_unfinished, named, set_aside, step_of
from train.checkpoint.hooks import Hooks
from train.checkpoint.manifest import DamagedCheckpoint, Manifest, Progress
from train.checkpoint.save_plan import SavePlans
from train.checkpoint.staging import Staging
from train.checkpoint.tensors import load_tensors
from train.checkpoint.verify import verify
from train.checkpoint.writer import Outcome, Writer
from train.faults.config import Place

PATIENCE = timedelta(hours=1)
"""How long a rank that has written its part waits for the slowest: no training waits with it."""


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
        group = dist.new_group(backend="gloo", timeout=PATIENCE)
        self._writer = Writer(Communicator(everyone=group), self._hooks)
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

    def finish(self) -> None:
        """Wait for the save that is under way.

        Raises:
            ConfigError: on every rank, if the last one failed.
        """
        self._settle(quiet=True)
        if self._last and self._last.failure:
            raise ConfigError(self._last.failure)

    def take_metrics(self) -> dict[str, float]:
        """ckpt/* of the last save that was committed since it was last asked; nothing if there was none."""
        metrics, self._metrics = self._metrics, {}
        return metrics

    def resume(self, engine: Engine) -> Resumed:
        """Load the newest checkpoint that is what was written, or do nothing: a new job. Of newer ones that are damaged
        rank 0 says so, and puts them aside.

        Raises:
            ConfigError: on every rank, if all are damaged, or one is of another model or a newer format.
        """
        self._settle()
        if self._comm.rank == 0:
            clear_unfinished(self._folder)
        # Rank 0 looks and tells: on a network file system ranks may not see the same folder at the same moment.
        found = self._comm.broadcast_object(candidates(self._folder) if self._comm.rank == 0 else [])
        damaged: list[DamagedCheckpoint] = []
        for checkpoint in reversed(found):
            try:
                progress = self._load(engine, checkpoint)
            except DamagedCheckpoint as error:
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
        read: Manifest | ConfigError | None = None
        if self._comm.rank == 0:
            try:
                read = Manifest.read(checkpoint)
            except ConfigError as error:
                read = error
        read = self._comm.broadcast_object(read)
        if isinstance(read, ConfigError):
            raise read
        assert read is not None
        verify(checkpoint, read, self._comm)
        self._hooks.reach(Place.load, 0)
        state = engine.weights() | engine.moments()
        load_tensors(state, checkpoint)
        engine.take_state(state, read.progress.updates)
        return read.progress

    def _put_aside(self, damaged: list[DamagedCheckpoint], used: Path) -> None:
        if self._comm.rank == 0:
            for error in damaged:
                aside = set_aside(error.checkpoint)
                print(
                    f"switchyard: {error.checkpoint} is damaged ({error.why}): going on from {used.name} instead; "
                    f"it is kept as {aside.name}",
                    file=sys.stderr,
                )

    def _settle(self, quiet: bool = False) -> None:
        """Wait for the save that is under way, and take in its outcome."""
        if self._running is None:
            return
        running, self._running = self._running, None
        outcome = self._last = running.wait()
        if outcome.failure and self._comm.rank == 0 and not quiet:
            print(f"switchyard: {outcome.failure}; training goes on, and the next save tries again", file=sys.stderr)
        if not outcome.failure:
            self._metrics = {
                "ckpt/step": outcome.step,
                "ckpt/blocked_s": self._blocked_s,
                "ckpt/total_s": outcome.seconds,
                "ckpt/bytes": outcome.bytes,
                "ckpt/gb_per_sec": outcome.bytes / outcome.seconds / 1e9,
            }
