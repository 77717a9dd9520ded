"""`python -m harness.late STAMPS EVENTS key=value …`: a training job in which named things are late, and say how long.

EVENTS are `STEP:WHAT:RANK:SECONDS,…` with RANK `all` or a number; WHAT is

    loader       the next batch is read late (wants overlap.data=0)
    forward      the first forward of the step begins late
    backward     the first backward does
    optimizer    the optimizer's step does
    KIND         the first collective of that kind (dp, tp, ep, pp, control) in the step is late: its wait ends late
    fsdp         FSDP2's first reduce-scatter of the step is late

Each rank writes what it did to STAMPS-RANK.json: `[{step, what, seconds}]`, seconds from its own two stamps; `what` is
also `waited`, for every wait for a collective of ours in the order of the waits.
"""

import json
import os
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from accelerate import Accelerator
from torch.optim import AdamW

import parallel.comm
import train.__main__
from models.transformer import Transformer
from parallel.overlap import passage
from train.data.loader import BatchLoader


@dataclass
class Events:
    """What is still to be late on this rank."""

    open: dict[tuple[int, str], float]
    step: int = 0
    done: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def parse(cls, text: str, rank: str) -> "Events":
        events = (event.split(":") for event in text.split(","))
        return cls({(int(step), what): float(s) for step, what, who, s in events if who in ("all", rank)})

    def happen(self, what: str) -> None:
        """Sleep, if `what` is to be late in this step."""
        seconds = self.open.pop((self.step, what), None)
        if seconds is None:
            return
        begin = time.perf_counter()
        time.sleep(seconds)
        self.stamp(what, time.perf_counter() - begin)

    def stamp(self, what: str, seconds: float) -> None:
        """Say that it took so long."""
        self.done.append({"step": self.step, "what": what, "seconds": seconds})


@dataclass(frozen=True)
class LateWork:
    """A collective that is done when its work is, and not before the event is over."""

    work: Any
    kind: str
    events: Events

    def wait(self) -> None:
        begin = time.perf_counter()
        self.work.wait()
        self.events.happen(self.kind)
        self.events.stamp("waited", time.perf_counter() - begin)

    def is_completed(self) -> bool:
        return False


def install(events: Events) -> None:
    """Put the events into this process."""
    read, forward, pending = BatchLoader._read, Transformer.forward, parallel.comm.Pending
    backward, of_accelerate, optimize = passage.backward_from, Accelerator.backward, AdamW.step

    def late_read(loader: BatchLoader) -> Any:
        events.step += 1
        events.happen("loader")
        return read(loader)

    def late_forward(model: Transformer, *args: Any) -> Any:
        events.happen("forward")
        return forward(model, *args)

    def late_backward(*args: Any, **kwargs: Any) -> Any:
        events.happen("backward")
        return backward(*args, **kwargs)

    def late_accelerate(*args: Any, **kwargs: Any) -> Any:
        events.happen("backward")
        return of_accelerate(*args, **kwargs)

    def late_step(optimizer: AdamW, *args: Any) -> Any:
        events.happen("optimizer")
        return optimize(optimizer, *args)

    def late_pending(output: Any, work: Any, kind: Any, operation: str, group: Any, number: int) -> Any:
        return pending(output, LateWork(work, kind.value, events), kind, operation, group, number)

    BatchLoader._read = late_read  # type: ignore[method-assign]
    Transformer.forward = late_forward  # type: ignore[method-assign]
    passage.backward_from = late_backward
    Accelerator.backward = late_accelerate  # type: ignore[method-assign]
    AdamW.step = late_step  # type: ignore[method-assign,assignment]
    parallel.comm.Pending = late_pending  # type: ignore[assignment,misc]
    for name in ("reduce_scatter_single", "reduce_scatter_tensor"):
        if hasattr(dist, name):
            setattr(dist, name, _late_start(getattr(dist, name), events))


def _late_start(function: Any, events: Events) -> Any:
    def start(*args: Any, **kwargs: Any) -> Any:
        work = function(*args, **kwargs)
        if not kwargs.get("async_op"):  # on CPU: it is FSDP2's, and done
            events.happen("fsdp")
        return work

    return start


def main(arguments: list[str]) -> None:
    """Run the job; the stamps are written however it ends."""
    stamps, text, *words = arguments
    rank = os.environ.get("RANK", "0")
    events = Events.parse(text, rank)
    install(events)
    try:
        train.__main__.main(words)
    finally:
        with open(f"{stamps}-{rank}.json", "w") as file:
            json.dump(events.done, file)


if __name__ == "__main__":
    main(sys.argv[1:])
