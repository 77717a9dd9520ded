"""From a layout's configuration to the engine that runs it."""

from models.config import ModelConfig
from parallel.comm import Communicator
from parallel.config import EngineName, OverlapConfig, PrecisionConfig, StrategyConfig
from parallel.engine import Engine, OptimizerMaker
from parallel.native_engine import NativeEngine
from parallel.parallelize import parallelize
from parallel.world import World


def open_engine(
    model: ModelConfig,
    strategy: StrategyConfig,
    overlap: OverlapConfig,
    precision: PrecisionConfig,
    world: World,
    comm: Communicator,
    seed: int,
    n_micro_batches: int,
    sequence_length: int,
    make_optimizer: OptimizerMaker,
) -> Engine:
    """`model` over the ranks of `world`, started from `seed`. Called by all ranks together; see parallelize."""
    whole_model = (model, strategy, overlap, precision, world, comm, seed, n_micro_batches, make_optimizer)
    match strategy.engine:
        case EngineName.accelerate:
            from parallel.accelerate_engine import AccelerateEngine

            return AccelerateEngine(*whole_model)
        case EngineName.deepspeed:
            from parallel.deepspeed_engine import DeepSpeedEngine

            return DeepSpeedEngine(*whole_model)
        case EngineName.native:
            parallel = parallelize(
                model, strategy, overlap, precision, world, comm, seed, n_micro_batches, sequence_length
            )
            return NativeEngine(parallel, make_optimizer, comm, precision.compute.torch)
