"""What the config says of the communication of a layout's step."""

from harness.layout_run import Layout
from parallel.mesh import Degrees
from parallel.traffic.predict import predict_traffic
from parallel.traffic.step_shape import StepShape
from parallel.traffic.tally import Traffic
from train.config import TrainConfig


def predicted_traffic(layout: Layout, world_size: int, n_dropped: int = 0) -> Traffic:
    """Over all ranks; `n_dropped` pairs beyond capacity."""
    degrees = Degrees.resolve(layout.strategy, world_size)
    train = TrainConfig(global_batch_size=layout.global_batch_size, micro_batch_size=layout.micro_batch_size)
    step = StepShape(
        n_micro_batches=train.micro_batches(degrees.dp, degrees.pp),
        micro_batch_size=train.micro_batch(degrees.dp, degrees.pp),
        sequence_length=layout.model.max_sequence_length,
        counts_targets=layout.batching.separator is not None,
        n_dropped=n_dropped,
    )
    return predict_traffic(layout.model, layout.strategy, layout.overlap, layout.precision, degrees, step)
