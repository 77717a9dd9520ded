"""The one executor: walks a rank's row of a schedule, whatever the schedule.

    row      F0   send a0   F1   recv g0   W0   B1   …
    comm          a0 ───────────→ behind F1                a send is waited for once it is answered
                                 g0 ──────────→ behind W0  a receive by the cell that takes it: B1

    row      F0   send a0         F1   recv g0         W0   B1            overlap.pipeline_p2p=false: each at once
    comm          a0 ──→ exposed       g0 ──→ exposed

Plain accumulation is a table of one rank; a pipeline is one of several, with messages in between. A message is started
where the table says. There, too, it can be waited for: transfers.py says why no order of waits can deadlock.
The executor never looks inside a stage, and a stage never learns of the others.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from models.transformer import Batch, Transformer
from parallel.clock.phase_clock import Phase
from parallel.comm import Communicator, Pending
from parallel.comm_kind import CommKind
from parallel.gradient_sync import GradientSync
from parallel.mesh import Axis
from parallel.overlap.order import Part, Walk, alone, together
from parallel.overlap.passage import Passage
from parallel.pipeline.action import Action, Op, Pair, Schedule, StageKey, Transfer, actions_of
from parallel.pipeline.loss_scale import LossScale
from parallel.pipeline.transfers import with_transfers

At = tuple[int, int, int]
"""Chain, stage, micro-batch."""
Do = Callable[[Callable[[], None]], None]
"""Does an action, by calling what it is given or otherwise (parallel/cuda_graph.py)."""


def as_it_is(action: Callable[[], None]) -> None:
    """By calling it."""
    action()


class Executor:
    """Runs steps over `stages`, in the order of `schedule`; the ranks of `pipeline` call it together."""

    def __init__(
        self,
        stages: Mapping[StageKey, Transformer],
        schedule: Schedule,
        pipeline: Axis,
        comm: Communicator,
        gradients: GradientSync,
        sequence_parts: int,
        dtype: torch.dtype,
        hide_messages: bool,
        side_by_side: bool,
    ) -> None:
        """`sequence_parts`: ranks that hold a part of each sequence; `dtype`: of activations; `hide_messages`: wait for
        them where they are needed, not where they are started; `side_by_side`: whether a pair's forward and backward
        take turns (parallel/overlap/order.py), or one runs after the other."""
        self._stages, self._schedule, self._pipeline, self._comm = stages, schedule, pipeline, comm
        self._gradients, self._sequence_parts, self._dtype = gradients, sequence_parts, dtype
        self._hide_messages, self._side_by_side = hide_messages, side_by_side
        self._row = with_transfers(schedule)[pipeline.rank]
        makers = [
            a for cell in schedule.rows[pipeline.rank] for a in actions_of(cell) if a.op in _MAKE_WEIGHT_GRADIENTS
        ]
        self._last = {action.key: action for action in makers}

    def forward_backward(self, batches: Sequence[Batch], scale: LossScale, do: Do = as_it_is) -> Tensor:
        """One step's micro-batches. Returns [2], float64: what this rank's stages add to the mean cross-entropy and to
        the routers' loss. Gradients are under way until `finish_step`. `do`: how actions are done that go alone."""
        if len(batches) != self._schedule.n_micro_batches:
            raise ValueError(f"{len(batches)} micro-batches for a schedule of {self._schedule.n_micro_batches}")
        return _Step(self, batches, scale, do).run(self._row)

    @torch.no_grad()
    def cross_entropy_sum(self, batches: Sequence[Batch], schedule: Schedule) -> Tensor:
        """Σ of the losses of all targets, float64, on the last stage's rank; 0 on the others. Forward only."""
        step = _Step(self, batches, LossScale(1, 1))
        return step.run(with_transfers(schedule)[self._pipeline.rank])[0]


_MAKE_WEIGHT_GRADIENTS = (Op.backward, Op.weight_backward)


class _Step:
    """What is alive in one walk over a row."""

    def __init__(self, executor: Executor, batches: Sequence[Batch], scale: LossScale, do: Do = as_it_is) -> None:
        self._of, self._batches, self._scale, self._do = executor, batches, scale, do
        self._alive: dict[At, Passage] = {}
        self._put_off: dict[At, Tensor | None] = {}
        """Gradients that all of a backward is left to do with."""
        self._activations: dict[At, Tensor | Pending] = {}
        """For the forward of (chain, stage, micro-batch)."""
        self._grads: dict[At, Tensor | Pending] = {}
        """For its backward."""
        self._sends: dict[tuple[bool, At], Pending] = {}
        """Under way: of a gradient or an activation, for (chain, stage, micro-batch)."""
        self._losses = torch.zeros(2, dtype=torch.float64, device=batches[0].tokens_BS.device)

    def run(self, row: Sequence[Any]) -> Tensor:
        walks = {
            Op.forward: self._forward,
            Op.backward: self._backward,
            Op.input_backward: self._input_backward,
            Op.weight_backward: self._weight_backward,
        }
        for cell in row:
            if isinstance(cell, Transfer):
                self._transfer(cell)
            elif isinstance(cell, Pair) and self._of._side_by_side:
                together(self._forward(cell.forward), self._backward(cell.backward), self._enter)
            else:
                for action in actions_of(cell):
                    self._enter(action.op is Op.forward)
                    self._do(partial(alone, walks[action.op](action)))
        for pending in self._sends.values():
            self._of._comm.wait(pending)
        return self._losses

    def _enter(self, forward: bool) -> None:
        """A phase begins."""
        if torch.is_grad_enabled():  # an evaluation is a phase of its own
            self._of._comm.clock.enter(Phase.compute_fwd if forward else Phase.compute_bwd)

    def _forward(self, action: Action) -> Walk:
        yield Part.attention
        batch, stage = self._batches[action.micro_batch], self._of._stages[action.key]
        at = (action.chain, action.stage, action.micro_batch)
        x = batch.tokens_BS if action.stage == 0 else self._take(self._activations, at)
        passage = Passage(stage, x, batch, self._scale)
        del x
        yield from passage.forward(in_segments=self._of._side_by_side and torch.is_grad_enabled())
        self._losses += passage.losses
        if action.stage < self._of._schedule.n_stages - 1:
            # Here, for a stage of this rank or until the table says to send it.
            self._activations[action.chain, action.stage + 1, action.micro_batch] = passage.take_hidden()
        if torch.is_grad_enabled():
            self._alive[at] = passage

    def _backward(self, action: Action) -> Walk:
        yield Part.attention
        at = (action.chain, action.stage, action.micro_batch)
        passage, grad = self._alive.pop(at), self._output_grad(action)
        self._begin_weights(action)
        yield from passage.backward(grad)
        self._hand_back(action, passage)

    def _input_backward(self, action: Action) -> Walk:
        at = (action.chain, action.stage, action.micro_batch)
        grad = self._output_grad(action)
        if action.stage == 0:
            self._put_off[at] = grad
            return  # nobody waits for a gradient of tokens: all of it is left for W
        yield from self._alive[at].backward(grad, input_only=True)
        self._hand_back(action, self._alive[at])

    def _weight_backward(self, action: Action) -> Walk:
        at = (action.chain, action.stage, action.micro_batch)
        passage, gradients = self._alive.pop(at), self._of._gradients
        self._begin_weights(action)
        if action.stage == 0:
            yield from passage.backward(self._put_off.pop(at))
            return
        for name in passage.weight_backward():
            gradients.arrived(action.key, name)
        gradients.made_by_hand(action.key)

    def _begin_weights(self, action: Action) -> None:
        self._of._gradients.begin_backward(action.key, last=self._of._last[action.key] == action)

    def _output_grad(self, action: Action) -> Tensor | None:
        """The gradient of the hidden states that the micro-batch put out, if it did."""
        if action.stage == self._of._schedule.n_stages - 1:
            return None
        grad = self._take(self._grads, (action.chain, action.stage, action.micro_batch))
        # It is the answer to an activation that was sent, and so has arrived: that need not be kept.
        if sent := self._sends.pop((False, (action.chain, action.stage + 1, action.micro_batch)), None):
            self._of._comm.wait(sent)
        return grad

    def _hand_back(self, action: Action, passage: Passage) -> None:
        if action.stage > 0:
            self._grads[action.chain, action.stage - 1, action.micro_batch] = passage.take_source_grad()

    def _take(self, where: dict[At, Tensor | Pending], at: At) -> Tensor:
        item = where.pop(at)
        return self._of._comm.wait(item) if isinstance(item, Pending) else item

    def _transfer(self, transfer: Transfer) -> None:
        where = self._grads if transfer.gradient else self._activations
        at = (transfer.chain, transfer.stage, transfer.micro_batch)
        group, comm = self._of._pipeline.group, self._of._comm
        if transfer.send:
            tensor = where.pop(at)
            assert isinstance(tensor, Tensor)
            # Nothing answers a gradient, nor an activation of an evaluation. (NCCL knows what is done; gloo only once
            # it was waited for.)
            self._sends = {key: sent for key, sent in self._sends.items() if not sent.work.is_completed()}
            sent = comm.start_send(tensor.contiguous(), transfer.peer, group, CommKind.pp)
            if self._of._hide_messages:
                self._sends[transfer.gradient, at] = sent
            else:
                comm.wait(sent)
            return
        tokens_BS = self._batches[transfer.micro_batch].tokens_BS
        width = next(iter(self._of._stages.values())).config.dim
        shape = (tokens_BS.shape[0], tokens_BS.shape[1] // self._of._sequence_parts, width)
        buffer = torch.empty(shape, dtype=self._of._dtype, device=tokens_BS.device)
        received = comm.start_receive(buffer, transfer.peer, group, CommKind.pp)
        where[at] = received if self._of._hide_messages else comm.wait(received)
