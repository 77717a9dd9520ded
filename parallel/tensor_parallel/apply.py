"""Cutting a stage's matrices over tensor-parallel ranks, in place and by name.

    embedding, head                        vocabulary
    query, key, value, query_up, kv_up     rows: heads             gate, up     rows: width
    output                                 columns: heads          down         columns: width
    query_down, kv_down, norms, router     whole

Not DTensor: parameters and activations stay plain tensors, so that FSDP2 is laid over the parts, fused optimizers take
them, and every collective is our Communicator's, which counts and times it.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import Attention, GroupedQueryAttention, MultiHeadLatentAttention
from models.block import Block
from models.config import AttentionKind, ConfigError, ModelConfig
from models.feed_forward import FeedForward
from models.layers import Linear
from models.positions import Positions
from models.transformer import Transformer
from parallel.collective_functions import Among
from parallel.tensor_parallel.chunks import gathered, in_chunks, in_sequence, joined, scattered
from parallel.tensor_parallel.split import Split
from parallel.tensor_parallel.vocabulary import VocabularyEmbedding, VocabularyHead

HEAD_ROWS = ("query", "query_up", "kv_up")


def tensor_parallel(stage: Transformer, among: Among, split_experts: bool, n_chunks: int) -> dict[str, Split]:
    """Cut `stage` (on meta, whole) in place; what each parameter that was cut is a part of, by name. Sequences travel
    in `n_chunks` before and after its matrices (chunks.py)."""
    cut = _Cutter(among.group.rank(), among.group.size())
    if stage.embedding is not None:
        cut.parameter(stage.embedding, "embedding.weight", 0)
        stage.embedding = VocabularyEmbedding(stage.embedding, among)
    for number, block in stage.layers.items():
        assert isinstance(block, Block)
        mixer = block.attention.mixer
        assert isinstance(mixer, GroupedQueryAttention | MultiHeadLatentAttention)
        _cut_attention(mixer, f"layers.{number}.attention.mixer", cut)
        mixer.forward = partial(_attention, mixer, among, n_chunks)  # type: ignore[method-assign]
        shared, routed = block.experts.shared, block.experts.routed
        if shared is not None:
            for name, dim in (("gate", 0), ("up", 0), ("down", 1)):
                cut.linear(getattr(shared, name), f"layers.{number}.experts.shared.{name}", dim)
            _cut_feed_forward(shared, among, n_chunks)
        if routed is not None and split_experts:
            for name in ("gate_up_E2FD", "down_EDF"):
                cut.parameter(routed, f"layers.{number}.experts.routed.{name}", 2)
    if stage.head is not None:
        cut.parameter(stage.head, "head.weight", 0)
        stage.head = VocabularyHead(stage.head, among)
    return cut.splits


def check_tensor_parallel(model: ModelConfig, tp: int, sequence_length: int) -> None:
    """Refuse sizes that do not divide.

    Raises:
        ConfigError: naming the number to change.
    """
    a, moe = model.attention, model.moe
    sizes = {"model.attention.n_heads": a.n_heads, "model.vocab_size": model.vocab_size}
    sizes["data.sequence_length"] = sequence_length
    if model.n_dense_layers:
        sizes["model.dense_dim"] = model.dense_dim
    for key, size in sizes.items():
        if size % tp:
            raise ConfigError(
                f"{key}={size} does not divide over strategy.tp={tp} ranks: set it to {size + -size % tp}"
            )
    if model.n_dense_layers < model.n_layers and moe.n_shared * moe.expert_dim % tp:
        raise ConfigError(
            f"model.moe.expert_dim={moe.expert_dim} × model.moe.n_shared={moe.n_shared} does not divide over "
            f"strategy.tp={tp} ranks: set the first to {moe.expert_dim + -moe.expert_dim % tp}"
        )
    if a.kind is AttentionKind.gqa and a.n_kv_heads % tp and tp % a.n_kv_heads:
        raise ConfigError(
            f"model.attention.n_kv_heads={a.n_kv_heads} and strategy.tp={tp}: one must divide the other; set "
            "model.attention.n_kv_heads to such a number"
        )


class _Cutter:
    """Replaces parameters by this rank's part of them, and remembers which part that is."""

    def __init__(self, index: int, count: int) -> None:
        self.index, self.count = index, count
        self.splits: dict[str, Split] = {}

    def parameter(self, module: nn.Module, name: str, dim: int) -> None:
        """One parameter of `module`, by its name in the stage."""
        leaf = name.rpartition(".")[2]
        whole: nn.Parameter = getattr(module, leaf)
        shape = list(whole.shape)
        shape[dim] //= self.count
        setattr(module, leaf, nn.Parameter(torch.empty(shape, dtype=whole.dtype, device=whole.device)))
        self.splits[name] = Split(dim, self.index, self.count)

    def linear(self, module: Linear, name: str, dim: int) -> None:
        """A Linear's rows (dim 0), with its bias, or columns (dim 1)."""
        self.parameter(module, f"{name}.weight", dim)
        if dim == 0 and module.bias is not None:
            self.parameter(module, f"{name}.bias", 0)


class _OneHead(Linear):
    """Projects to the one key or value head that this rank's query heads share; the weight stays whole, for ranks with
    the same head would otherwise have to keep their copies of it equal."""

    def __init__(self, whole: Linear, first_row: int, n_rows: int) -> None:
        nn.Module.__init__(self)
        self.weight, self.bias, self.init_std = whole.weight, whole.bias, whole.init_std
        self._rows = slice(first_row, first_row + n_rows)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias[self._rows].to(x.dtype)
        return F.linear(x, self.weight[self._rows].to(x.dtype), bias)


class _PartialOutput(Linear):
    """Its outputs are summed over ranks: each adds an equal part of the bias."""

    def __init__(self, part: Linear, count: int) -> None:
        nn.Module.__init__(self)
        self.weight, self.bias, self.init_std, self._count = part.weight, part.bias, part.init_std, count

    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype) / self._count)


def _cut_attention(mixer: GroupedQueryAttention | MultiHeadLatentAttention, path: str, cut: _Cutter) -> None:
    for name in HEAD_ROWS:
        if hasattr(mixer, name):
            cut.linear(getattr(mixer, name), f"{path}.{name}", 0)
    a = mixer.config
    if isinstance(mixer, GroupedQueryAttention):
        for name in ("key", "value"):
            if a.n_kv_heads % cut.count == 0:
                cut.linear(getattr(mixer, name), f"{path}.{name}", 0)
            else:
                head = cut.index * a.n_kv_heads // cut.count
                setattr(mixer, name, _OneHead(getattr(mixer, name), head * a.head_dim, a.head_dim))
    cut.linear(mixer.output, f"{path}.output", 1)
    if mixer.output.bias is not None:
        mixer.output = _PartialOutput(mixer.output, cut.count)


def _attention(mixer: Attention, among: Among, n_chunks: int, x_BsD: Tensor, positions: Positions) -> Tensor:
    """Over all tokens, with this rank's heads: a partial sum, summed. Projections are made chunk by chunk."""
    n_ranks = among.group.size()
    projected = zip(*map(mixer.project, gathered(x_BsD, among, n_chunks)), strict=True)
    mixed = mixer.attend([in_sequence(chunks, n_ranks) for chunks in projected], positions)
    return scattered(map(mixer.output, in_chunks(mixed, n_ranks, n_chunks)), among)


def _cut_feed_forward(module: FeedForward, among: Among, n_chunks: int) -> None:
    """Over all tokens, chunk by chunk, with this rank's part of the width: a partial sum, summed. Between the halves
    tokens lie chunk after chunk."""
    widen, narrow = module.widen, module.narrow

    def forward(x_BsD: Tensor) -> Tensor:
        return scattered((narrow(widen(x_BnD)) for x_BnD in gathered(x_BsD, among, n_chunks)), among)

    def widen_all(x_BsD: Tensor) -> Tensor:
        return joined([widen(x_BnD) for x_BnD in gathered(x_BsD, among, n_chunks)], dim=1)

    def narrow_all(wide_BSF: Tensor) -> Tensor:
        return scattered(map(narrow, wide_BSF.chunk(n_chunks, dim=1)), among)

    for name, over_chunks in (("forward", forward), ("widen", widen_all), ("narrow", narrow_all)):
        setattr(module, name, over_chunks)
