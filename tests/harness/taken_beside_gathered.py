"""`torchrun … -m harness.taken_beside_gathered`: strategy.dispatcher=symmetric_memory beside all_gather on CPUs, in
float64: its kernels interpreted, and a file for the memory that GPUs share. Raises where they differ.

What nobody wants is NaN: new tensors are, and so are rows of tokens that have no expert on a rank, and their gradients.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from harness.expert_trip import there_and_back
from harness.kernels_beside_rows import Everywhere
from harness.layout_run import DDP, FSDP, MODEL, MODEL_ALL_OPTIONS, ZERO1, Layout, Outcome, run_layout
from harness.predicted_traffic import predicted_traffic
from harness.shared_file import SharedFile
from harness.spoilt_places import SpoiltPlaces
from models.config import ExpertBackend, MoEConfig
from models.experts import RoutedExperts
from models.placement import ExpertPlacement
from models.router import Routing
from models.rows import Rows
from parallel import peer_memory
from parallel.collective_functions import Among
from parallel.comm import Communicator
from parallel.comm_kind import CommKind
from parallel.config import OverlapConfig, Recompute
from parallel.expert_parallel.build import DispatcherName, RowRoom, build_dispatcher
from parallel.pipeline.schedules import ScheduleName
from parallel.traffic.tally import Traffic

T, D, E, K = 13, 16, 8, 3
BOTH = (DispatcherName.all_gather, DispatcherName.symmetric_memory)


@contextmanager
def spoilt_memory() -> Iterator[None]:
    """New tensors are NaN."""
    plain: Any = Tensor.new_empty

    def new_empty(like: Tensor, *sizes: Any, **words: Any) -> Tensor:
        made: Tensor = plain(like, *sizes, **words)
        return made.fill_(torch.nan) if made.is_floating_point() and made.layout is torch.strided else made

    Tensor.new_empty = new_empty  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.new_empty = plain  # type: ignore[method-assign]


class Watched(SpoiltPlaces):
    """Writes down how many rows came, and whether sums were made where peers read them."""

    n_came: ClassVar[list[int]] = []
    in_place: ClassVar[list[bool]] = []

    def take(
        self, x_TD: Tensor, wanted: peer_memory.Wanted, chosen: peer_memory.Chosen | None = None
    ) -> tuple[Tensor, peer_memory.Taking]:
        y_ND, taking = super().take(x_TD, wanted, chosen)
        self.n_came.append(int((~y_ND.isnan().any(1)).sum()))
        return y_ND, taking

    def add_up(self, partial_ND: Tensor, wanted: peer_memory.Wanted) -> tuple[Tensor, peer_memory.Taking]:
        place_ND = self.place_for_sums(partial_ND, len(partial_ND))
        self.in_place.append(place_ND.data_ptr() == partial_ND.data_ptr())
        return super().add_up(partial_ND, wanted)


def layer(name: DispatcherName, placement: ExpertPlacement, room: RowRoom, rows: Rows, drop: bool) -> list[Tensor]:
    """Two micro-batches, the second one shorter, through one layer and back, and one without gradients between."""
    group = dist.group.WORLD
    assert group is not None
    comm, rank = Communicator(), dist.get_rank()
    dispatcher = build_dispatcher(name, placement, rank, Among(comm, group, CommKind.ep), None, rows=rows, room=room)
    slots = placement.slots_of_rank[rank]
    module = RoutedExperts(MoEConfig(n_routed=E, expert_dim=8), D, 1, slots, ExpertBackend.loop).double()
    generator = torch.Generator().manual_seed(rank)
    for parameter in module.parameters():
        parameter.data.normal_(generator=generator)
    outcomes = []
    rank_of_E = torch.tensor([next(r for r, of in enumerate(placement.slots_of_rank) if e in of) for e in range(E)])
    for n_tokens, learns in ((T, True), (T, False), (T - 4, True)):
        x_TD, probe_TD = (torch.randn(n_tokens, D, generator=generator, dtype=torch.float64) for _ in range(2))
        experts_TK = torch.rand(n_tokens, E, generator=generator).topk(K).indices
        kept_TK = torch.rand(n_tokens, K, generator=generator) > 0.4 if drop else None
        weights_TK = torch.rand(n_tokens, K, generator=generator, dtype=torch.float64).requires_grad_()
        x_TD.requires_grad_()
        with torch.set_grad_enabled(learns):
            y_TD, _ = there_and_back(dispatcher, module, x_TD, Routing(experts_TK, weights_TK, kept_TK=kept_TK))
        rank_TK = rank_of_E[experts_TK] if kept_TK is None else rank_of_E[experts_TK].masked_fill(~kept_TK, -1)
        n_wanted_R = torch.stack([(rank_TK == r).any(1).sum() for r in range(dist.get_world_size())])
        n_wanted_R[rank] = n_tokens  # its own are there
        dist.all_reduce(n_wanted_R)
        assert name is DispatcherName.all_gather or Watched.n_came[-1] == n_wanted_R[rank]
        outcomes.append(y_TD.detach())
        if learns:
            outcomes += torch.autograd.grad(y_TD, (x_TD, weights_TK, *module.parameters()), probe_TD)
    wanted = [comm.calls[CommKind.ep, f"{operation}_wanted"] for operation in ("all_gather", "reduce_scatter")]
    assert wanted == ([5, 5] if name is DispatcherName.symmetric_memory else [0, 0])
    return outcomes


def check_layers() -> None:
    """Whoever makes rows, and wherever experts lie; some ranks have no token of others'."""
    n_ranks = dist.get_world_size()
    lopsided = ExpertPlacement((tuple(range(1, E - n_ranks + 2)), (0,), *((e,) for e in range(E - n_ranks + 2, E))))
    round_robin = ExpertPlacement.round_robin(E, n_ranks)
    cases: list[tuple[ExpertPlacement, Rows, RowRoom, bool]] = [
        (placement, Rows(), room, drop)
        for placement in (round_robin, lopsided)
        for room in RowRoom
        for drop in (False, True)
    ]
    for placement, rows, room, drop in [*cases, (round_robin, Everywhere(), RowRoom.static, True)]:
        Watched.in_place.clear()
        with spoilt_memory():
            expected, got = (layer(name, placement, room, rows, drop) for name in BOTH)
        assert Watched.in_place == [type(rows) is Everywhere] * 5
        for ours, theirs in zip(got, expected, strict=True):
            # Kernels that make rows sum in float32.
            tolerance = 1e-13 if type(rows) is Rows else 1e-4
            torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def layouts() -> dict[str, Layout]:
    """By name, of as many ranks as there are."""
    hidden, eight = OverlapConfig(shared_experts=True), replace(MODEL, moe=replace(MODEL.moe, n_routed=8))
    if dist.get_world_size() == 2:
        return {
            "zero1": Layout(replace(ZERO1, ep=2, rows=RowRoom.static), hidden),
            "accumulated": Layout(replace(DDP, ep=2, recompute=Recompute.full), micro_batch_size=1),
        }
    split = replace(DDP, ep=2, pp=2, schedule=ScheduleName.zbv)
    return {
        "fsdp": Layout(replace(FSDP, ep=2), hidden, model=MODEL_ALL_OPTIONS),
        "pp": Layout(split, hidden, model=replace(MODEL, n_layers=4)),
        "tp": Layout(replace(DDP, ep=4, tp=2), model=eight),
    }


def check_layouts() -> None:
    """Losses, gradients, held-out losses; and what was said is what is predicted."""
    for name, layout in layouts().items():
        expected, got = (run_with(layout, which) for which in BOTH)
        for field in ("losses", "evals", "grad_norms"):
            np.testing.assert_allclose(getattr(got, field), getattr(expected, field), rtol=0, atol=1e-11, err_msg=name)
        for key, piece in expected.first_gradients.items():
            ours = got.first_gradients[key].array
            np.testing.assert_allclose(ours, piece.array, rtol=0, atol=1e-12, err_msg=f"{name} {key}")
        of_all: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(of_all, got.traffic)
        chosen = replace(layout, strategy=replace(layout.strategy, dispatcher=BOTH[1]))
        predicted = predicted_traffic(chosen, dist.get_world_size(), int(got.dropped[-1]))
        assert Traffic.total(of_all).rows() == predicted.rows(), name


def run_with(layout: Layout, dispatcher: DispatcherName) -> Outcome:
    return run_layout(replace(layout, strategy=replace(layout.strategy, dispatcher=dispatcher)))


if __name__ == "__main__":
    peer_memory.SharedMemory = SharedFile  # type: ignore[misc,assignment]
    peer_memory.PeerMemory = Watched  # type: ignore[misc]
    dist.init_process_group("gloo")
    check_layers()
    check_layouts()
    dist.destroy_process_group()
