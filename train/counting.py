"""Counts what an attempt does, beside its steps: measure.counts."""

from collections.abc import Iterator
from contextlib import contextmanager

from parallel.comm import Communicator
from parallel.torch_internals import graphs_made
from parallel.traffic.meter import TrafficMeter
from parallel.traffic.tally import Traffic
from train.metrics.counts import RunCounts, Said


class Counting:
    """Of one rank; all ranks call `of_step` together.

    The first step alone is metered: to look over every operator takes time on the host, and the first step is the one
    that no speed is read from. It says what every other one says.
    """

    def __init__(self, comm: Communicator, metered: bool) -> None:
        """`metered`: whether collectives can be counted; those of another library's engine are its own."""
        self._comm, self._metered = comm, metered
        self._graphs: int | None = None
        self._said: list[Said] | None = None

    @contextmanager
    def of_step(self) -> Iterator[None]:
        """Around each step; after the first one ranks tell rank 0 what they counted in it."""
        if self._graphs is not None:
            yield
            return
        if self._metered:
            with TrafficMeter(self._comm) as meter:
                yield
            of_ranks = self._comm.gather_object(meter.traffic)
            self._said = [Said(*row) for row in Traffic.total(of_ranks).rows()]
        else:
            yield
        self._graphs, _ = graphs_made()

    def counts(self) -> RunCounts | None:
        """Until now, on rank 0; None of an attempt without a step."""
        if self._graphs is None:
            return None
        graphs, breaks = graphs_made()
        return RunCounts(graphs, graphs - self._graphs, breaks, self._said)
