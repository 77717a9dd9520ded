"""A few steps of one layout on random tokens, in the calling rank, and all that a comparison looks at.

The reference is the same function on one rank. Nothing here knows which engine or layout it runs.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from math import isnan

import numpy as np

from launch.verify.pieces import Piece, merge, pieces
from launch.verify.routing import Choices, Share, pinned, recorded
from models.config import ModelConfig
from parallel.comm import Communicator
from parallel.config import OverlapConfig, PrecisionConfig, Recompute, StrategyConfig
from parallel.engine import Engine
from parallel.mesh import Degrees
from parallel.open_engine import open_engine
from parallel.traffic.meter import TrafficMeter
from parallel.traffic.predict import predict_traffic
from parallel.traffic.step_shape import StepShape
from parallel.traffic.tally import Traffic
from parallel.world import World
from train.batch import BatchMaker
from train.config import OptimConfig, TrainConfig
from train.data.loader import BatchLoader
from train.data.synthetic import open_synthetic
from train.evaluate import evaluate
from train.optimizer import build_optimizer
from train.step import OptimizerStep, StepResult


@dataclass(frozen=True)
class Trial:
    """What to run."""

    model: ModelConfig
    strategy: StrategyConfig
    overlap: OverlapConfig
    precision: PrecisionConfig
    sequence_length: int
    train: TrainConfig
    """Steps, batch, evaluation and seed."""
    batching: BatchMaker
    optim: OptimConfig = field(default_factory=OptimConfig)
    rate: float = 1e-3
    """As large as a model of that size bears: a wrong update shows, and rounding is not blown up from step to step."""
    pinned: Choices | None = None
    """Which experts every token takes, instead of what routers say."""

    def predicted_traffic(self, world_size: int, n_dropped: int) -> Traffic:
        """Of one step of the native engine on `world_size` ranks, all ranks together."""
        degrees = Degrees.resolve(self.strategy, world_size)
        shape = StepShape(
            self.train.micro_batches(degrees.dp, degrees.pp),
            self.train.micro_batch(degrees.dp, degrees.pp),
            self.sequence_length,
            counts_targets=self.batching.separator is not None,
            n_dropped=n_dropped,
        )
        return predict_traffic(self.model, self.strategy, self.overlap, self.precision, degrees, shape)

    def in_one_process(self, world_size: int) -> "Trial":
        """The same job on one rank: what `world_size` ranks of this one are to equal."""
        degrees = Degrees.resolve(self.strategy, world_size)
        # The batch-level balancing loss is one of a micro-batch over all ranks: the same ones, then.
        together = self.train.micro_batch(degrees.dp, degrees.pp) * degrees.dp
        return replace(
            self,
            strategy=StrategyConfig(),
            overlap=OverlapConfig(),
            train=replace(self.train, micro_batch_size=together),
        )


@dataclass
class StepRecord:
    """One optimizer step, of this rank."""

    loss: float
    router_loss: float
    grad_norm: float
    chosen_LE: np.ndarray
    """(token, expert) pairs by layer and expert, of all ranks."""
    dropped_LE: np.ndarray
    gradients: dict[str, Piece]
    """Before clipping, by logical name."""
    weights: dict[str, Piece]
    """Parameters and buffers after the update."""
    eval_loss: float | None
    """Held-out loss after it."""
    traffic: Traffic
    """What this rank put into collectives; of all ranks when put together."""


@dataclass
class Record:
    """What came of a trial, of this rank."""

    steps: list[StepRecord]
    choices: Choices
    """[step][layer]: this rank's tokens' experts."""


@dataclass(frozen=True)
class WholeStep:
    """One optimizer step of all ranks."""

    loss: float
    router_loss: float
    grad_norm: float
    chosen_LE: np.ndarray
    dropped_LE: np.ndarray
    gradients: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    eval_loss: float | None
    traffic: Traffic


def run_trial(trial: Trial, world: World) -> Record:
    """Train over the running process group. Called by all ranks together."""
    comm, train = Communicator(), trial.train
    degrees = Degrees.resolve(trial.strategy, world.size)
    micro_batch_size = train.micro_batch(degrees.dp, degrees.pp)
    engine = open_engine(
        trial.model,
        trial.strategy,
        trial.overlap,
        trial.precision,
        world,
        comm,
        train.seed,
        n_micro_batches=train.micro_batches(degrees.dp, degrees.pp),
        sequence_length=trial.sequence_length,
        make_optimizer=partial(build_optimizer, optim=trial.optim),
    )
    corpus = open_synthetic(trial.sequence_length, trial.model.vocab_size, train.seed)
    loader = BatchLoader(
        stream=corpus.train,
        global_batch_size=train.global_batch_size,
        micro_batch_size=micro_batch_size,
        dp_rank=engine.data.rank,
        dp_size=engine.data.size,
        start_step=0,
        prefetch=0,
        device=world.device,
    )
    gradients: list[dict[str, Piece]] = []

    def keep_gradients(engine: Engine) -> None:
        gradients.append(pieces(engine.gradients()))

    step = OptimizerStep(
        engine, comm, trial.batching, train.global_batch_size, trial.optim.clip_norm, before_update=keep_gradients
    )
    share = Share(
        engine.data,
        micro_batch_size,
        train.micro_batches(degrees.dp, degrees.pp),
        recomputed=trial.strategy.recompute is not Recompute.none,
    )
    steps: list[StepRecord] = []
    choices: Choices = []
    for number in range(train.steps):
        pin = nullcontext() if trial.pinned is None else pinned(trial.pinned[number], share)
        with pin, recorded(trial.sequence_length) as of_layers, TrafficMeter(comm) as meter:
            result = step(next(loader), trial.rate)
        choices.append(of_layers)
        weights = pieces(engine.weights())
        eval_loss = None
        # Between steps, where a gathered parameter that stays gathered would spoil the next one.
        if train.eval_sequences and number % 2 == 0:
            size = train.eval_micro_batch(degrees.dp, degrees.pp)
            eval_loss = evaluate(engine, corpus.heldout, trial.batching, train.eval_sequences, size, comm, world.device)
        steps.append(_record(result, gradients.pop(), weights, eval_loss, meter.traffic))
    return Record(steps, choices)


def _record(
    result: StepResult,
    gradients: dict[str, Piece],
    weights: dict[str, Piece],
    eval_loss: float | None,
    traffic: Traffic,
) -> StepRecord:
    return StepRecord(
        result.loss.item(),
        result.router_loss.item(),
        result.grad_norm.item(),
        result.routing.chosen_LE.cpu().numpy(),
        result.routing.dropped_LE.cpu().numpy(),
        gradients,
        weights,
        eval_loss,
        traffic,
    )


def whole_steps(records: list[Record]) -> list[WholeStep]:
    """The steps of all ranks' records, arrays put together.

    Raises:
        ValueError: if ranks do not hold the whole, or differ in what they say of it.
    """
    wholes = []
    for number, of_ranks in enumerate(zip(*(record.steps for record in records), strict=True)):
        first = of_ranks[0]
        for rank, other in enumerate(of_ranks):
            for name in ("loss", "router_loss", "grad_norm", "eval_loss"):
                mine, its = getattr(first, name), getattr(other, name)
                if mine != its and not (isnan(mine) and isnan(its)):
                    raise ValueError(f"{name} of step {number + 1}: ranks 0 and {rank} say different numbers")
        try:
            gradients = merge(record.gradients for record in of_ranks)
            weights = merge(record.weights for record in of_ranks)
        except ValueError as error:
            raise ValueError(f"after step {number + 1}, {error}") from error
        wholes.append(
            WholeStep(
                first.loss,
                first.router_loss,
                first.grad_norm,
                first.chosen_LE,
                first.dropped_LE,
                gradients,
                weights,
                first.eval_loss,
                Traffic.total(record.traffic for record in of_ranks),
            )
        )
    return wholes
