"""What tokens cost: forward and backward of one micro-batch through all layers, call by call, on one rank.

    tp   sequences gathered before matrices and scattered after them; maxima and sums over the vocabulary
    ep   counts, and rows to the experts and back; or all tokens to all ranks, and their sums back; of tokens that
         are taken by those that want them, the bound that the Communicator counts

Backward mirrors what gradients flow through: of a gather it is a scatter. Recomputation says a part's forward again, up
to the last result that backward needs; what comes after that is not repeated.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from models.config import ModelConfig
from parallel.comm_kind import CommKind
from parallel.config import OverlapConfig, PrecisionConfig, Recompute, StrategyConfig
from parallel.expert_parallel.build import DispatcherName
from parallel.mesh import Degrees
from parallel.traffic.step_shape import StepShape
from parallel.traffic.tally import Channel, Traffic

MIRROR = {"all_gather": "reduce_scatter", "reduce_scatter": "all_gather", "all_to_all": "all_to_all"}
MIRROR |= {"all_gather_wanted": "reduce_scatter_wanted", "reduce_scatter_wanted": "all_gather_wanted"}
INDEX_SIZE = 8
"""Bytes of an expert's number, and of a count."""


@dataclass(frozen=True)
class _Said:
    """Collectives of one rank's forward."""

    channel: Channel
    n_bytes: int
    n_mirrored: int | None = None
    """Bytes of the mirror image in backward; None: no gradient flows."""
    repeated: bool = True
    """Where its part of the block is recomputed, up to the last result that backward needs."""
    n_calls: int = 1


class MicroBatchTraffic:
    """Of a micro-batch on one rank of tensor and expert parallelism."""

    def __init__(
        self,
        model: ModelConfig,
        strategy: StrategyConfig,
        overlap: OverlapConfig,
        precision: PrecisionConfig,
        degrees: Degrees,
        step: StepShape,
    ) -> None:
        self._model, self._strategy, self._overlap, self._degrees = model, strategy, overlap, degrees
        self._chunks = overlap.async_tp if degrees.tp > 1 else 1
        self._itemsize = precision.compute.torch.itemsize
        self._wide = max(4, self._itemsize)
        """Bytes of a routing weight, and of a logit in the loss."""
        self._n_tokens = step.micro_batch_size * step.sequence_length // degrees.tp
        self.hidden_bytes = self._n_tokens * model.dim * self._itemsize
        """Of the residual stream, which pipeline stages hand on."""

    def total(self) -> Traffic:
        """Of all layers, the embedding and the head."""
        outside, recomputed = [*self._scatter(), *self._head()], []
        for layer in range(self._model.n_layers):
            sparse = layer >= self._model.n_dense_layers
            recomputed += [*self._attention(sparse), *self._feed_forward(sparse)]
            if sparse:
                outside += self._dispatch_and_combine()
        traffic = Traffic()
        _add(traffic, outside, again=False)
        again = self._strategy.recompute is not Recompute.none
        if again and self._chunks > 1:  # to the end
            recomputed = [replace(said, repeated=True) for said in recomputed]
        _add(traffic, recomputed, again)
        return traffic

    def _attention(self, sparse: bool) -> Iterator[_Said]:
        moe, degrees = self._model.moe, self._degrees
        yield from self._in_chunks(self._gather())
        yield from self._in_chunks(self._scatter())
        if not sparse:
            return
        choices = self._gathered(CommKind.tp, degrees.tp, moe.top_k * INDEX_SIZE, gradient=False)
        if moe.capacity_factor is not None:
            # Which pairs are kept needs no gradient; only a loss of the router comes after it.
            yield from (replace(said, repeated=moe.has_router_loss) for said in choices)
        if moe.sequence_loss_weight:
            yield from choices
        if moe.batch_loss_weight:
            yield _Said(Channel(CommKind.control, "all_reduce", degrees.dp * degrees.tp), moe.n_routed * self._wide)

    def _feed_forward(self, sparse: bool) -> Iterator[_Said]:
        """Dense, or shared experts."""
        if not sparse or self._model.moe.n_shared:
            yield from self._in_chunks(self._gather())
            yield from (replace(said, repeated=False) for said in self._in_chunks(self._scatter()))

    def _in_chunks(self, all_said: Iterable[_Said]) -> Iterator[_Said]:
        """The same bytes in more calls."""
        return (replace(said, n_calls=self._chunks) for said in all_said)

    def _head(self) -> Iterator[_Said]:
        yield from self._gather()
        degrees = self._degrees
        if degrees.tp > 1:
            n_tokens = degrees.tp * self._n_tokens
            n_chunks = -(-n_tokens // self._model.loss_chunk_size)
            for operation, numbers in (("all_reduce_max", 1), ("all_reduce", 2)):
                channel = Channel(CommKind.tp, operation, degrees.tp)
                yield _Said(channel, numbers * n_tokens * self._wide, n_calls=n_chunks)

    def _dispatch_and_combine(self) -> Iterator[_Said]:
        """Of one layer. With `etp`, all ranks that split the experts by width have the tokens of all of them."""
        degrees, n_tokens = self._degrees, self._n_tokens
        if degrees.etp > 1:
            yield from self._all_tokens(CommKind.tp, degrees.etp)
            n_tokens *= degrees.etp
        if degrees.ep == 1:
            return
        if self._strategy.dispatcher is not DispatcherName.all_to_all:
            wanted = "_wanted" if self._strategy.dispatcher is DispatcherName.symmetric_memory else ""
            yield from self._all_tokens(CommKind.ep, degrees.ep, n_tokens, wanted)
            return
        channel = Channel(CommKind.ep, "all_to_all", degrees.ep)
        yield _Said(channel, self._model.moe.n_routed * INDEX_SIZE)
        # A rank may send more than its share, and another one less: their sum is this.
        rows = n_tokens * self._model.moe.top_k * self._model.dim * self._itemsize
        yield from 2 * [_Said(channel, rows, rows, n_calls=self._overlap.dispatch_chunks)]

    def _all_tokens(self, kind: CommKind, size: int, n_tokens: int | None = None, which: str = "") -> list[_Said]:
        """Rows to all ranks, with choices and weights beside them, and the sum of what they make of them back; `which`
        rows, at the end of an operation's name."""
        weights, row = self._model.moe.top_k * self._wide, self._model.dim * self._itemsize
        # A choice is sent as another weight; gradients are of the weights alone.
        said = [replace(both, n_bytes=2 * both.n_bytes) for both in self._gathered(kind, size, weights, n_tokens)]
        tokens = [*self._gathered(kind, size, row, n_tokens), *self._scattered(kind, size, row, n_tokens)]
        named = [replace(one, channel=one.channel._replace(operation=one.channel.operation + which)) for one in tokens]
        return said + named

    def _gather(self) -> list[_Said]:
        """The sequence, before matrices that are split."""
        return self._gathered(CommKind.tp, self._degrees.tp, self._model.dim * self._itemsize)

    def _scatter(self) -> list[_Said]:
        """The sequence, after them."""
        return self._scattered(CommKind.tp, self._degrees.tp, self._model.dim * self._itemsize)

    def _gathered(
        self, kind: CommKind, size: int, per_token: int, n_tokens: int | None = None, gradient: bool = True
    ) -> list[_Said]:
        if size == 1:
            return []
        n_bytes = per_token * (self._n_tokens if n_tokens is None else n_tokens)
        return [_Said(Channel(kind, "all_gather", size), n_bytes, size * n_bytes if gradient else None)]

    def _scattered(self, kind: CommKind, size: int, per_token: int, n_tokens: int | None = None) -> list[_Said]:
        if size == 1:
            return []
        n_bytes = per_token * (self._n_tokens if n_tokens is None else n_tokens)
        return [_Said(Channel(kind, "reduce_scatter", size), size * n_bytes, n_bytes)]


def _add(traffic: Traffic, all_said: Iterable[_Said], again: bool) -> None:
    for said in all_said:
        n_forwards = 2 if again and said.repeated else 1
        traffic.add(said.channel, n_forwards * said.n_calls, n_forwards * said.n_bytes)
        if said.n_mirrored is not None:
            mirror = said.channel._replace(operation=MIRROR[said.channel.operation])
            traffic.add(mirror, said.n_calls, said.n_mirrored)
