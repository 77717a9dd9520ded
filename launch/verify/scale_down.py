"""A job made small enough for a laptop, with every count that a layout divides kept.

    kept      layers (less whole rounds of stages), dense layers, heads, KV heads, experts, top-k, groups, shared
              experts, documents, micro-batches (up to four a pipeline rank), chunks of the loss, gradient buckets
    shrunk    every width, the vocabulary, the sequence, sequences of a micro-batch
    replaced  data, by random tokens

A layout is right or wrong by what it divides and what it adds up, not by how wide that is.
"""

import math
from dataclasses import replace

from conf.schema import JobConfig
from models.balanced_routing import balanced, even_length
from models.config import AttentionConfig, AttentionKind, ModelConfig
from models.flops import count_parameters
from parallel.check_engine import READ
from parallel.config import EngineName, Reduction
from parallel.mesh import Degrees
from parallel.pipeline.schedules import count_stages
from train.config import TrainConfig
from train.data.config import DataConfig, DataSource

STEPS = 3
MOST_ROUNDS = 2
"""Layers of each stage, but for the dense ones in front."""


def scale_down(job: JobConfig, degrees: Degrees, steps: int = STEPS) -> JobConfig:
    """`job`, valid on the ranks of `degrees`, as a smaller one that is."""
    n_stages = degrees.pp * count_stages(job.strategy.schedule, job.strategy.stages_per_rank) if degrees.pp > 1 else 1
    model = _model(job.model, n_stages, degrees.tp)
    parts = degrees.tp * job.overlap.async_tp if degrees.tp > 1 else 1
    multiple = math.lcm(parts, even_length(model.moe)) if balanced(model) else parts
    length = _shrink(job.data.sequence_length, 32, multiple)
    train = _train(job.train, degrees, steps)
    # As many chunks and buckets as there would be, or enough to see that there are several.
    tokens = job.train.micro_batch(degrees.dp, degrees.pp) * job.data.sequence_length
    n_chunks = min(4, -(-tokens // job.model.loss_chunk_size))
    chunk = -(-train.micro_batch(degrees.dp, degrees.pp) * length // n_chunks)
    engine, reduction = job.strategy.engine, job.strategy.reduction
    native = engine is EngineName.native
    in_buckets = (
        degrees.world > 1 and reduction is not Reduction.shard if native else "bucket_mib" in READ[engine, reduction]
    )
    shrinkage = count_parameters(model).total / count_parameters(job.model).total
    return replace(
        job,
        model=replace(model, loss_chunk_size=chunk),
        overlap=replace(job.overlap, bucket_mib=job.overlap.bucket_mib * (shrinkage if in_buckets else 1)),
        data=DataConfig(
            source=DataSource.synthetic, name="synthetic", sequence_length=length, boundaries=job.data.boundaries
        ),
        train=train,
    )


def _model(model: ModelConfig, n_stages: int, tp: int) -> ModelConfig:
    spare = model.n_layers - model.n_dense_layers - max(MOST_ROUNDS * n_stages, 4)
    n_layers = model.n_layers - max(0, spare) // n_stages * n_stages
    return replace(
        model,
        n_layers=n_layers,
        vocab_size=_shrink(model.vocab_size, 96, tp),
        dim=_shrink(model.dim, 32, 1),
        dense_dim=_shrink(model.dense_dim, 48, tp),
        init_from=None,
        attention=_attention(model.attention),
        moe=replace(model.moe, expert_dim=_shrink(model.moe.expert_dim, 16, tp)),
    )


def _attention(attention: AttentionConfig) -> AttentionConfig:
    if attention.kind is AttentionKind.gqa:
        turnable = (n for n in (8, 16, 32, 64) if n < attention.head_dim and _turns_pairs(n, attention.rope_fraction))
        return replace(attention, head_dim=next(turnable, attention.head_dim))
    return replace(
        attention,
        q_lora_rank=_shrink(attention.q_lora_rank, 12, 1),
        kv_lora_rank=_shrink(attention.kv_lora_rank, 16, 1),
        qk_nope_dim=_shrink(attention.qk_nope_dim, 8, 1),
        qk_rope_dim=_shrink(attention.qk_rope_dim, 4, 1),
        v_dim=_shrink(attention.v_dim, 8, 1),
    )


def _turns_pairs(head_dim: int, rope_fraction: float) -> bool:
    turned = int(head_dim * rope_fraction)
    return turned > 0 and turned % 2 == 0


def _train(train: TrainConfig, degrees: Degrees, steps: int) -> TrainConfig:
    n_micro_batches = min(train.micro_batches(degrees.dp, degrees.pp), 4 * degrees.pp if degrees.pp > 1 else 3)
    size = min(train.micro_batch(degrees.dp, degrees.pp), 2)
    share = size * degrees.dp
    return replace(
        train,
        steps=steps,
        global_batch_size=n_micro_batches * share,
        micro_batch_size=size,
        eval_sequences=2 * share if train.eval_sequences else 0,
    )


def _shrink(size: int, to: int, multiple: int) -> int:
    """`size`, or `to` if that is less; a multiple of `multiple`, as `size` is."""
    return min(size, -(-to // multiple) * multiple)
