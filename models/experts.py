"""The routed experts of one layer, as two stacked weights, over rows that are already sorted by slot.

N rows, E slots, D model width, F expert width, W = 2F.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import ExpertBackend, ModelConfig, MoEConfig
from models.dispatcher import Dispatcher, Travelling
from models.fused_experts import fused
from models.grouped_products import Products, TritonProducts
from models.placement import groups_of_slots
from models.triton_here import triton_lacks

STACKED = {"gate_up_E2FD": ("gate_EFD", "up_EFD")}
"""Parameters in which an expert has several matrices, along dimension 1, and their names: by these they start, and by
these they are in checkpoints."""
GROUPED_ON = (9, 10)
"""First numbers of compute capabilities where grouped_mm is a kernel, in bf16; elsewhere it is a loop (torch 2.13)."""


class RoutedExperts(nn.Module):
    """SwiGLU experts: down(silu(gate(x)) · up(x)), each slot's rows by its own weights.

    Dimension 0 of each weight is the slot, not the logical expert: `expert_of_slot` names who lives there, for
    initialisation and checkpoints. Gate (0) and up (1) are one parameter, so that one product makes both; a width that
    is shared out is cut at dimension 2 of either weight.
    """

    def __init__(
        self,
        moe: MoEConfig,
        dim: int,
        residual_depth: int,
        expert_of_slot: tuple[int, ...],
        backend: ExpertBackend,
        whole_backward: bool = True,
    ) -> None:
        """`whole_backward`: see models/surroundings.py."""
        super().__init__()
        n_slots = len(expert_of_slot)
        self.expert_of_slot = expert_of_slot
        self.backend, self.whole_backward = backend, whole_backward
        self.gate_up_E2FD = nn.Parameter(torch.empty(n_slots, 2, moe.expert_dim, dim))
        self.down_EDF = nn.Parameter(torch.empty(n_slots, dim, moe.expert_dim))
        self.init_std = {
            "gate_up_E2FD": dim**-0.5,
            "down_EDF": (moe.expert_dim * residual_depth) ** -0.5,
        }

    def forward(
        self, coming: Sequence[Travelling], tickets: Sequence[Any], dispatcher: Dispatcher
    ) -> tuple[Travelling, ...]:
        """Take what comes, part by part, and send it back: a part's rows travel while the next one is computed.

        `tickets`: of what went out (models/dispatcher.py).
        """
        of_parts = [(self.gate_up_E2FD, self.down_EDF)]
        if len(coming) > 1:  # cut once: each cut of a weight makes a whole gradient of it
            sizes = groups_of_slots(len(self.expert_of_slot), len(coming))
            of_parts = list(zip(self.gate_up_E2FD.split(sizes), self.down_EDF.split(sizes), strict=True))
        going = []
        for travelling, ticket, (gate_up_E2FD, down_EDF) in zip(coming, tickets, of_parts, strict=True):
            rows_ND, offsets_E, weights_N, back = dispatcher.arrived(travelling.arrive(), ticket)
            rows_ND = self.compute(rows_ND, offsets_E, gate_up_E2FD, down_EDF, weights_N)
            going.append(dispatcher.returning(rows_ND, back).begin())
        return tuple(going)

    def compute(
        self,
        rows_ND: Tensor,
        offsets_E: Tensor,
        gate_up_E2FD: Tensor,
        down_EDF: Tensor,
        weights_N: Tensor | None = None,
    ) -> Tensor:
        """Rows [N, D] with the ends of the slots' rows [E] (int32) to rows [N, D], by weight if there are weights: that
        of a row scales it before down, where it is narrower. Empty slots are fine.

        Rows from offsets_E[-1] on belong to no slot and may hold anything: N may be a bound that the host knew. What
        comes out there, and as their gradient, is undefined; nothing else depends on it.
        """
        gate_up_E2FD, down_EDF = (weight.to(rows_ND.dtype) for weight in (gate_up_E2FD, down_EDF))
        backend = choose_backend(self.backend, rows_ND, gate_up_E2FD.shape[2], self.whole_backward)
        if backend is not ExpertBackend.loop and not len(rows_ND):
            # Backward of CUDA's grouped_mm refuses no rows (torch 2.11), and nothing is fetched of a tensor that is
            # empty; a row of no slot is in nothing.
            one_N = None if weights_N is None else F.pad(weights_N, (0, 1))
            return self.compute(F.pad(rows_ND, (0, 0, 0, 1)), offsets_E, gate_up_E2FD, down_EDF, one_N)[:0]
        if backend is ExpertBackend.loop:
            return _loop(rows_ND, offsets_E, gate_up_E2FD, down_EDF, weights_N)
        gate_up_EWD = gate_up_E2FD.flatten(1, 2)
        if backend is ExpertBackend.grouped_mm:
            return _grouped(rows_ND, offsets_E, gate_up_EWD, down_EDF, weights_N)
        ours = backend is ExpertBackend.triton
        products = TritonProducts(offsets_E, len(rows_ND)) if ours else Products(offsets_E)
        return fused(rows_ND, gate_up_EWD, down_EDF, weights_N, products)


def choose_backend(
    wanted: ExpertBackend, rows_ND: Tensor, expert_dim: int, whole_backward: bool = True
) -> ExpertBackend:
    """`wanted`, or for auto: fused in bf16 on CUDA, grouped_mm without Triton or a whole backward, and in float32 or
    bf16 on CPU outside torch.compile. What `triton` gives depends on loads too much to be taken unasked.

    Elsewhere grouped_mm raises or is a slow fallback (float64 and compiled float32 on CPU: torch 2.13).
    """
    if wanted is not ExpertBackend.auto:
        return wanted
    if rows_ND.is_cuda:
        runs = rows_ND.dtype is torch.bfloat16
    else:
        runs = rows_ND.dtype in (torch.float32, torch.bfloat16) and not torch.compiler.is_compiling()
    if not runs or not grouped_mm_takes(rows_ND.shape[1], expert_dim, rows_ND.element_size()):
        return ExpertBackend.loop
    return (
        ExpertBackend.fused if rows_ND.is_cuda and whole_backward and not triton_lacks() else ExpertBackend.grouped_mm
    )


def grouped_mm_takes(dim: int, expert_dim: int, element_size: int) -> bool:
    """Whether rows of both widths are whole multiples of 16 bytes, as grouped_mm demands."""
    return dim * element_size % 16 == 0 and expert_dim * element_size % 16 == 0


def loops_on_gpu(
    model: ModelConfig, dtype: torch.dtype, n_parts: int, device: torch.device
) -> tuple[str, str | None] | None:
    """Why experts are a loop on a GPU, for which the host waits for how many rows each has, and what to set to what;
    None: they are none. `n_parts`: of an expert's width.

    A `device` without an index is any GPU; one with an index is a GPU of this machine, which may be a reason too: then
    there is nothing to set.
    """
    said = "experts are a loop on a GPU"
    if model.expert_backend is ExpertBackend.loop:
        return f"with model.expert_backend=loop {said}", "set that to auto"
    if dtype is not torch.bfloat16:
        return f"with precision.compute={str(dtype).removeprefix('torch.')} {said}", "use precision=bf16"
    if not grouped_mm_takes(model.dim, model.moe.expert_dim // n_parts, dtype.itemsize):
        sizes = f"model.dim={model.dim} model.moe.expert_dim={model.moe.expert_dim}"
        return f"with {sizes} {said}", f"set them to multiples of {8 * n_parts}"
    if device.index is not None and (has := torch.cuda.get_device_capability(device))[0] not in GROUPED_ON:
        name = torch.cuda.get_device_name(device)
        return "experts are a loop on {} (compute capability {}.{})".format(name, *has), None
    return None


def _grouped(
    rows_ND: Tensor, offsets_E: Tensor, gate_up_EWD: Tensor, down_EDF: Tensor, weights_N: Tensor | None
) -> Tensor:
    gate_NF, up_NF = F.grouped_mm(rows_ND, gate_up_EWD.transpose(1, 2), offs=offsets_E).chunk(2, dim=1)
    h_NF = _weighed(F.silu(gate_NF) * up_NF, weights_N)
    return F.grouped_mm(h_NF, down_EDF.transpose(1, 2), offs=offsets_E)


def _weighed(h_NF: Tensor, weights_N: Tensor | None) -> Tensor:
    return h_NF if weights_N is None else h_NF * weights_N.to(h_NF.dtype).unsqueeze(1)


def _loop(
    rows_ND: Tensor, offsets_E: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, weights_N: Tensor | None
) -> Tensor:
    """The same, to be read. unbind's backward stacks once; indexing w[e] would fill a whole [E, F, D] per expert."""
    ends = offsets_E.tolist()
    *groups, beyond = rows_ND.tensor_split(ends)
    *weights, _ = [None] * (len(ends) + 1) if weights_N is None else weights_N.tensor_split(ends)
    gate_EFD, up_EFD = gate_up_E2FD.unbind(1)
    outputs = [
        F.linear(_weighed(F.silu(F.linear(x_nD, gate_FD)) * F.linear(x_nD, up_FD), weights_n), down_DF)
        for x_nD, weights_n, gate_FD, up_FD, down_DF in zip(
            groups, weights, gate_EFD.unbind(), up_EFD.unbind(), down_EDF.unbind(), strict=True
        )
    ]
    return torch.cat([*outputs, beyond.new_zeros(len(beyond), down_EDF.shape[1])])
