"""In which order two micro-batches take turns, as DeepSeek's trace, Megatron-LM and PithTrain have it. For each layer:

    backward   attention │              │ experts │         │ dispatch ┄┄┄┄┄┄┄┄┄┄┄┄→ │ attention (of the layer below)
               combine ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄→ │         │         │            │
    forward              │ attention    │         │ dispatch ┄┄┄┄┄┄┄┄┄→ │ experts │
                         │ counts ┄┄┄┄┄┄┄┄┄┄┄┄┄┄→ │                     │ combine ┄┄┄┄┄┄┄┄┄→ attention (of the next)

    compute    attention(B)  attention(F)   experts(B)      experts(F)      attention(B)
    exchange                 combine(B)     dispatch(F)     dispatch(B)     combine(F)

`attention` is all that lies between two layers' experts: a layer's attention with the sum, the dense blocks, embedding
or head before it. It ends with the start of an exchange: in backward of combine's gradients; in forward rows are ready
to go, but the host must know how many come (on CPU it does at once). While it waits for that, experts(B) is enqueued,
and both dispatches start behind it, the forward's first: on a communicator exchanges are done in the order of their
starts, and only its rows are there already.
"""

from collections.abc import Callable, Iterator
from enum import Enum
from itertools import cycle
from typing import NamedTuple


class Part(Enum):
    """What a walk does in one turn."""

    attention = "attention"
    """Wait for combine (backward: for dispatch) and compute; start the next exchange, or be ready to."""
    dispatch = "dispatch"
    """Start the exchange that is ready."""
    experts = "experts"
    """Wait for dispatch (backward: for combine) and compute."""


Walk = Iterator[Part]
"""Goes through a stage, turn by turn; gives what comes next."""


class Turn(NamedTuple):
    """Whose turn it is, and to do what."""

    forward: bool
    part: Part


ORDER = (
    Turn(False, Part.attention),
    Turn(True, Part.attention),
    Turn(False, Part.experts),
    Turn(True, Part.dispatch),
    Turn(False, Part.dispatch),
    Turn(True, Part.experts),
)
"""Of one layer; then again, until both are through. Who has nothing to do in a turn is passed over."""


def alone(walk: Walk) -> None:
    """Go through at once."""
    for _ in walk:
        pass


def together(forward: Walk, backward: Walk, now: Callable[[bool], None]) -> None:
    """Go through both in ORDER; `now` is told before each turn whether it is the forward's."""
    walks = {True: forward, False: backward}
    upcoming = {of_forward: next(walk, None) for of_forward, walk in walks.items()}
    for turn in cycle(ORDER):
        if upcoming[turn.forward] is turn.part:
            now(turn.forward)
            upcoming[turn.forward] = next(walks[turn.forward], None)
        elif not any(upcoming.values()):
            return
