"""Measures what this rank says: our collectives by the Communicator's own record, FSDP2's by looking over torch's
shoulder."""

from collections import Counter
from types import TracebackType

from parallel.comm import Communicator, Issued
from parallel.comm_kind import CommKind
from parallel.torch_internals import CollectiveObserver
from parallel.traffic.tally import Traffic


class TrafficMeter:
    """`with TrafficMeter(comm) as meter: …`, then `meter.traffic`. An observer of every operator: for measuring a step,
    not for all of them."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self._seen: Counter[tuple[str, int, int]] = Counter()
        self._observer = CollectiveObserver(lambda *what: self._seen.update([what]))
        self._before: Counter[Issued] = Counter()
        self.traffic = Traffic()
        """Of the time in between; filled at its end."""

    def __enter__(self) -> "TrafficMeter":
        self._seen.clear()
        self._before = self._comm.issued.copy()
        self._observer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._observer.__exit__(kind, error, trace)
        ours = self._comm.issued - self._before
        # What torch issued by itself is what was seen, less what we issued: nobody but FSDP2 does.
        theirs = self._seen.copy()
        for (_, operation, group_size, n_bytes), times in ours.items():
            if operation in ("all_gather", "reduce_scatter", "all_reduce", "all_reduce_max"):
                theirs[operation.removesuffix("_max"), group_size, n_bytes] -= times
        if error is None and min(theirs.values(), default=0) < 0:
            raise RuntimeError(f"collectives of ours that were issued and not seen: {-theirs}")
        fsdp = [(Issued(CommKind.fsdp, *what), times) for what, times in theirs.items()]
        self.traffic = Traffic.of([*ours.items(), *fsdp])
