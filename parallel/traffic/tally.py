"""How much was said: collectives by kind, operation and size of the group."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from parallel.comm import Issued
from parallel.comm_kind import CommKind


class Channel(NamedTuple):
    """What collectives are told apart by."""

    kind: CommKind
    operation: str
    group_size: int


@dataclass
class Traffic:
    """Calls and bytes by channel. A call is one rank's: an all-reduce over 4 ranks counts 4 over all of them."""

    calls: Counter[Channel] = field(default_factory=Counter)
    n_bytes: Counter[Channel] = field(default_factory=Counter)
    """Put in by the ranks that called, their own share of an exchange included; 0 for receives."""

    @classmethod
    def of(cls, issued: Iterable[tuple[Issued, int]]) -> "Traffic":
        """What was issued, and how often each."""
        traffic = cls()
        for (kind, operation, group_size, n_bytes), times in issued:
            traffic.add(Channel(kind, operation, group_size), times, times * n_bytes)
        return traffic

    @classmethod
    def total(cls, parts: Iterable["Traffic"]) -> "Traffic":
        """Of all ranks, from each rank's."""
        traffic = cls()
        for part in parts:
            traffic.calls.update(part.calls)
            traffic.n_bytes.update(part.n_bytes)
        return traffic

    def times(self, factor: int) -> "Traffic":
        """The same, `factor` times over."""
        return Traffic(
            Counter({channel: factor * calls for channel, calls in self.calls.items()}),
            Counter({channel: factor * n_bytes for channel, n_bytes in self.n_bytes.items()}),
        )

    def add(self, channel: Channel, calls: int, n_bytes: int) -> None:
        """`calls` that together put in `n_bytes`; nothing if there are none."""
        if calls:
            self.calls[channel] += calls
            self.n_bytes[channel] += n_bytes

    def rows(self) -> list[tuple[str, str, int, int, int]]:
        """Kind, operation, group size, calls, bytes: sorted, to be printed or written down."""
        return sorted((c.kind.value, c.operation, c.group_size, n, self.n_bytes[c]) for c, n in self.calls.items())
