"""A micro-batch's way through a stage and back: at once, or in segments between which another one has its turn."""

from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor

from models.block import Attended, Block, ExpertOutput
from models.positions import Positions
from models.router import Routing
from models.transformer import Batch, LossTerms, Transformer
from parallel.overlap.order import Part, Walk
from parallel.overlap.segment import Crossing, Segment
from parallel.pipeline.loss_scale import LossScale
from parallel.torch_internals import backward_from, split_backward_input, split_backward_weight


class Passage:
    """A micro-batch in a stage, from its forward to the last of its backward."""

    def __init__(self, stage: Transformer, x: Tensor, batch: Batch, scale: LossScale) -> None:
        """`x`: tokens in the first stage, else the hidden states of the one before."""
        self._stage, self._x, self._batch, self._scale = stage, x, batch, scale
        self._segments: list[Segment] = []
        self._groups: list[dict[str, Any]] = []
        """What is left of a split backward."""
        self._source = Crossing(x)
        self._end: Crossing | None = None
        self._hidden: Tensor | None = None
        self.losses = torch.zeros(2, dtype=torch.float64, device=x.device)
        """What it adds to the mean cross-entropy and to the routers' loss."""

    def take_source_grad(self) -> Tensor:
        """The gradient of the hidden states that it began with, once backward is done; it is not kept."""
        grad, self._source.grad = self._source.grad, None
        assert grad is not None, "tokens have no gradient"
        return grad

    def take_hidden(self) -> Tensor:
        """What the next stage takes, once forward is done; it is not kept."""
        hidden, self._hidden = self._hidden, None
        assert hidden is not None, "the last stage hands nothing on"
        return hidden

    def forward(self, in_segments: bool) -> Walk:
        """Go through; in segments, each exchange is started in one turn, and waited for in a later one."""
        stage, segment = self._stage, self._open(Part.attention)
        x, documents_BS = self._x, self._batch.documents_BS
        del self._x
        if stage.embedding is None:
            x = segment.enter(x, self._source)
        if not in_segments:
            out = stage(x, self._batch.targets_BS, documents_BS)
            self._add_router_loss(segment, out.router_loss_sum)
            if isinstance(out, LossTerms):
                self._add_cross_entropy(segment, out.cross_entropy_sum)
            else:
                self._hand_on(segment, out.x_BSD)
            return
        x_BSD = stage.embedding(x) if stage.embedding is not None else x
        positions = stage.positions(x_BSD, documents_BS)
        for block in stage.layers.values():
            assert isinstance(block, Block)
            if block.dispatch.dispatcher is None:
                x_BSD, _ = block(x_BSD, positions)
            else:
                x_BSD, segment = yield from self._through_experts(block, x_BSD, positions, segment)
        if stage.norm is None or stage.head is None:
            self._hand_on(segment, x_BSD)
        else:
            self._add_cross_entropy(segment, stage.head(stage.norm(x_BSD), self._batch.targets_BS))

    def _through_experts(
        self, block: Block, x_BSD: Tensor, positions: Positions, segment: Segment
    ) -> Generator[Part, None, tuple[Tensor, Segment]]:
        """From `segment`, where a layer's attention is, to the next one, which begins with the sum."""
        experts, following = self._open(Part.experts), self._open(Part.attention)
        attended = block.attention(x_BSD, positions)
        del x_BSD
        routing = attended.routing
        assert routing is not None
        if routing.loss_sum is not None:
            self._add_router_loss(segment, routing.loss_sum)
        departed = block.dispatch(attended.normed_BSD, routing)
        normed_BSD = attended.normed_BSD.detach()
        if block.experts.shared is not None:
            normed_BSD = segment.hand(attended.normed_BSD, experts)
        routing = Routing(routing.experts_TK, segment.hand(routing.weights_TK, following), routing.kept_TK)
        attended = Attended(segment.hand(attended.residual_BSD, following), normed_BSD, routing)
        going = tuple(segment.send(rows, experts) for rows in departed.travelling)
        departed = departed._replace(travelling=going)
        yield Part.dispatch

        for rows in going:
            rows.link.start()
        yield Part.experts

        output = block.experts(normed_BSD, departed)
        returning = tuple(experts.send(rows, following) for rows in output.travelling)
        for rows in returning:
            rows.link.start()
        shared_BSD = output.shared_BSD
        if shared_BSD is not None:
            shared_BSD = experts.hand(shared_BSD, following)
        output = ExpertOutput(shared_BSD, returning)
        yield Part.attention

        return block.combine(attended, departed, output), following

    def backward(self, grad: Tensor | None, input_only: bool = False) -> Walk:
        """Go back, in as many turns as forward took. `grad` is of the hidden states that left, if any did; `input_only`
        leaves the weights' gradients for `weight_backward`."""
        if self._end is not None:
            self._end.grad = grad
        while True:
            segment = self._segments.pop()
            edges, grads = segment.roots()
            if input_only:
                self._groups += split_backward_input(edges, grads, segment.tokens, list(self._stage.parameters()))
            else:
                backward_from(edges, grads)
            del edges, grads  # not to be kept over another one's turn
            if segment.part is Part.experts:
                yield Part.dispatch
            segment.start_back()
            if not self._segments:
                return
            yield self._segments[-1].part

    def weight_backward(self) -> list[str]:
        """The rest of a backward that was `input_only`. Returns the weights that it was for, by name."""
        named = {id(parameter): name for name, parameter in self._stage.named_parameters()}
        reached = [named[id(node.variable)] for group in self._groups for node in group["params"]]
        split_backward_weight(self._groups)
        return reached

    def _open(self, part: Part) -> Segment:
        self._segments.append(Segment(part))
        return self._segments[-1]

    def _hand_on(self, segment: Segment, x_BSD: Tensor) -> None:
        self._end, self._hidden = segment.leave(x_BSD), x_BSD.detach()

    def _add_cross_entropy(self, segment: Segment, loss_sum: Tensor) -> None:
        self._add_loss(0, segment, loss_sum / self._scale.n_targets)

    def _add_router_loss(self, segment: Segment, loss_sum: Tensor) -> None:
        self._add_loss(1, segment, loss_sum / self._scale.n_tokens)

    def _add_loss(self, which: int, segment: Segment, share: Tensor) -> None:
        self.losses[which] += share.detach().double()
        segment.minimise(share)
