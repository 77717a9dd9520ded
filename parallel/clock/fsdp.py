"""FSDP2's own collectives and waits on our clock."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.distributed import ProcessGroup

from parallel.clock.phase_clock import Clock, PhaseClock
from parallel.comm_kind import CommKind
from parallel.torch_internals import fsdp_watched


def fsdp_timed(clock: Clock, device: torch.device) -> AbstractContextManager[None]:
    """Inside, whatever FSDP2 on `device` starts and waits for is bracketed as kind fsdp, by anybody's model."""
    if not isinstance(clock, PhaseClock):
        return nullcontext()

    def issuing(operation: str) -> AbstractContextManager[None]:
        return clock.issuing(CommKind.fsdp, operation)

    def waiting(operation: str, group: ProcessGroup, over: bool) -> AbstractContextManager[None]:
        return clock.waiting(CommKind.fsdp, operation, group, over=over)

    return fsdp_watched(issuing, waiting, torch.cuda.current_stream(device) if device.type == "cuda" else None)
