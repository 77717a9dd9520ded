"""What one rank does in a step, in order: collectives issued and waited for, matrix products, updates.

Hidden is what has something of compute between its issue and its wait. On CPU this is all that can be proven, for two
cores are no measure of time.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.distributed import ProcessGroup
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from harness.layout_run import Layout, batches_of, open_layout, this_world
from parallel.comm import Awaited, Communicator, Pending
from parallel.comm_kind import CommKind
from train.step import OptimizerStep

PRODUCTS = ("mm", "addmm", "bmm", "linear")
"""Operators that count as compute."""
PRODUCT, UPDATE = "product", "update"


@dataclass(frozen=True)
class Issue:
    """A collective begins."""

    number: int
    kind: CommKind
    operation: str


@dataclass(frozen=True)
class Wait:
    """Somebody waits for it."""

    number: int


Event = Issue | Wait | str
"""A str is compute: PRODUCT or UPDATE."""


class RecordedCommunicator(Communicator):
    """Writes down what it issues and waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self._numbered: list[Pending] = []

    def wait(self, pending: Pending) -> Tensor:
        """See Communicator."""
        numbers = [number for number, other in enumerate(self._numbered) if other is pending]
        self.events += map(Wait, numbers)
        return super().wait(pending)

    @contextmanager
    def _issuing(
        self, kind: CommKind, operation: str, group: ProcessGroup | None, put_in: Tensor | None
    ) -> Iterator[Callable[[Tensor, Awaited | None], Pending]]:
        with super()._issuing(kind, operation, group, put_in) as made:

            def noted(output: Tensor, work: Awaited | None) -> Pending:
                pending = made(output, work)
                self.events.append(Issue(len(self._numbered), kind, operation))
                self._numbered.append(pending)
                return pending

            yield noted


class _Products(TorchDispatchMode):
    """Sees them in forward and in backward."""

    def __init__(self, events: list[Event]) -> None:
        super().__init__()
        self._events = events

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket.__name__ in PRODUCTS:
            self._events.append(PRODUCT)
        return function(*args, **(kwargs or {}))


def record_step(layout: Layout) -> list[Event]:
    """The second step's events, of the calling rank."""
    comm = RecordedCommunicator()
    engine = open_layout(layout, this_world(), comm)
    loader = batches_of(layout, engine.data)
    step = OptimizerStep(engine, comm, layout.batching, layout.global_batch_size, layout.clip_norm)
    step(next(loader), layout.rate)
    comm.events.clear()

    def update(optimizer: Optimizer, *_: Any) -> None:
        comm.events.append(UPDATE)

    hook = register_optimizer_step_pre_hook(update)
    try:
        with _Products(comm.events):
            step(next(loader), layout.rate)
    finally:
        hook.remove()
    return comm.events


@dataclass(frozen=True)
class Travelled:
    """A collective and what this rank computed between its issue and its wait."""

    issue: Issue
    behind: list[str]


def travelled(events: Sequence[Event], kind: CommKind, *operations: str) -> list[Travelled]:
    """Those of `kind` (and of `operations`, if there are any), in the order of issue; all were waited for."""
    found = []
    for begin, event in enumerate(events):
        if isinstance(event, Issue) and event.kind is kind and (not operations or event.operation in operations):
            end = events.index(Wait(event.number), begin)
            found.append(Travelled(event, [e for e in events[begin:end] if isinstance(e, str)]))
    return found
