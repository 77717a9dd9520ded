"""Rows that travel behind shared experts, and behind the experts of other rows: what is started before what is
computed, and waited for after it, in forward and in backward."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from harness.layout_run import MODEL
from harness.worker_pool import WorkerPool
from torch import Tensor
from torch.distributed import ProcessGroup

from models.block import Block
from models.placement import ExpertPlacement
from models.positions import Positions
from models.surroundings import Surroundings
from parallel.collective_functions import Among
from parallel.comm import Communicator, Pending
from parallel.comm_kind import CommKind
from parallel.expert_parallel.build import DispatcherName, RowRoom, build_dispatcher


class Watched(Communicator):
    """Writes down when rows start to travel and when they are waited for; counts that go ahead are no rows, nor are
    choices and weights."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self._rows: list[Pending] = []

    def start_all_to_all(
        self, tensor: Tensor, sent: Sequence[int], received: Sequence[int], group: ProcessGroup, kind: CommKind
    ) -> Pending:
        pending = super().start_all_to_all(tensor, sent, received, group, kind)
        return self._noted(tensor, pending)

    def start_all_gather(self, tensor: Tensor, group: ProcessGroup, kind: CommKind) -> Pending:
        return self._noted(tensor, super().start_all_gather(tensor, group, kind))

    def start_reduce_scatter(self, tensor: Tensor, group: ProcessGroup, kind: CommKind) -> Pending:
        return self._noted(tensor, super().start_reduce_scatter(tensor, group, kind))

    def _noted(self, tensor: Tensor, pending: Pending) -> Pending:
        if tensor.dim() > 1 and tensor.shape[1] == MODEL.dim:
            self.events.append(f"start {len(self._rows)}")
            self._rows.append(pending)
        return pending

    def wait(self, pending: Pending) -> Tensor:
        self.events += [f"wait {number}" for number, known in enumerate(self._rows) if known is pending]
        return super().wait(pending)


def events_of(
    hide: bool, n_parts: int, name: DispatcherName = DispatcherName.all_to_all, room: RowRoom = RowRoom.exact
) -> tuple[str, str]:
    """Of one block on two ranks, by forward and backward."""
    comm = Watched()
    group = torch.distributed.group.WORLD
    assert group is not None
    placement = ExpertPlacement.contiguous(MODEL.moe.n_routed, 2)
    rank = comm.rank
    dispatcher = build_dispatcher(name, placement, rank, Among(comm, group, CommKind.ep), None, n_parts, room=room)
    block = Block(MODEL, Surroundings(dispatcher, hide, rank))
    generator = torch.Generator().manual_seed(rank)
    for parameter in block.parameters():
        parameter.data.normal_(std=0.1, generator=generator)
    block.dispatch.reset_buffers()
    block.attention.router.expert_bias_E.zero_()

    def watched(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any) -> Tensor:
            comm.events.append(name)
            result = function(*args)
            result.register_hook(lambda _: comm.events.append(f"{name} back"))  # its backward comes next
            return result

        return call

    experts = block.experts
    assert experts.shared is not None
    assert experts.routed is not None
    experts.shared.widen = watched("gate and up", experts.shared.widen)
    experts.shared.narrow = watched("down", experts.shared.narrow)
    experts.routed.compute = watched("experts", experts.routed.compute)
    x_BSD = torch.randn(2, 16, MODEL.dim, generator=generator, requires_grad=True)
    positions = Positions.of(None, x_BSD.shape[1], MODEL.attention, x_BSD.dtype, x_BSD.device)
    y_BSD, _ = block(x_BSD, positions)
    forward, comm.events = comm.events, []
    y_BSD.sum().backward()
    return "│".join(forward), "│".join(comm.events)


EXPOSED = (
    "start 0│wait 0│experts│start 1│wait 1│gate and up│down",
    "down back│gate and up back│start 2│wait 2│experts back│start 3│wait 3",
)
BEHIND_SHARED = (
    "start 0│gate and up│wait 0│experts│start 1│down│wait 1",
    "start 2│down back│wait 2│experts back│start 3│gate and up back│wait 3",
)
IN_TWO_PARTS = (
    "start 0│start 1│wait 0│experts│start 2│wait 1│experts│start 3│wait 2│wait 3│gate and up│down",
    "down back│gate and up back│start 4│start 5│wait 4│experts back│start 6│wait 5│experts back│start 7│wait 6│wait 7",
)


@pytest.mark.parametrize(
    ("hide", "n_parts", "expected"), [(False, 1, EXPOSED), (True, 1, BEHIND_SHARED), (False, 2, IN_TWO_PARTS)]
)
def test_what_stands_between_start_and_wait(
    hide: bool, n_parts: int, expected: tuple[str, str], pool: WorkerPool
) -> None:
    assert pool.run(2, events_of, hide, n_parts) == [expected, expected]


@pytest.mark.parametrize("room", RowRoom)
@pytest.mark.parametrize(("hide", "expected"), [(False, EXPOSED), (True, BEHIND_SHARED)])
def test_so_it_is_where_all_tokens_go_to_all_ranks(
    room: RowRoom, hide: bool, expected: tuple[str, str], pool: WorkerPool
) -> None:
    assert pool.run(2, events_of, hide, 1, DispatcherName.all_gather, room) == [expected, expected]
