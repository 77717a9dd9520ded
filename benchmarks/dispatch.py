"""Ways to bring tokens to the ranks of their experts and their sums back, in the shapes of moe_5b's layers.

    torchrun --standalone --nproc-per-node N benchmarks/dispatch.py      N GPUs of one host, linked by NVLink

    rows      all_to_all, NCCL: a row for each (token, expert), there and back; who sends how many is known
    tokens    all_gather and reduce_scatter, NCCL: every token to every rank, partial sums back
    copies    the same by copy engines, into memory that ranks share, put (push) or taken (pull); a kernel adds up
    torch     the same by torch's own low-contention operators
    wanted    `tokens` without those that nobody wants: a token once to each rank that has an expert of it, and one
              partial sum from each of these back, taken by a kernel on few multiprocessors: what
              strategy.dispatcher=symmetric_memory does, but for one meeting of ranks more, and that who wants what
              is known here. A row lies where `tokens` has it, so nothing is counted, and the host waits for nothing

MB go over the links of the busiest rank, one way; GB/s are that over ms. What is sent lies where its way wants it: to
make rows of tokens, and to sort what came, is not in these times. Then dispatch and combine over and over, on a stream
beside the one that multiplies [T, D] by [D, 5632]: ms of one product (alone in the heading), of a dispatch and its
combine, and what that costs products, the ms by which these end later. Each is checked before: an expert here
multiplies by a number of its own.

NVLink multicast is not used. Without GPUs there are no times, and only NCCL's two, by gloo.
"""

import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from dispatch_ways import (
    EXPERTS,
    PATIENCE,
    TOP_K,
    Case,
    Copies,
    Memory,
    Rows,
    Tokens,
    TorchsOwn,
    Transport,
    Wanted,
    WrongError,
)
from timed import Call

from parallel.comm import Communicator

TOKENS, DIM, WIDTH = 16384, 2048, 5632
CALLS, REPEATS, PRODUCTS = 5, 3, 16
PROGRAMS = (16, 32)
"""Of 132 multiprocessors: what kernels that move rows may take."""
RUNS_NOT = (RuntimeError, ValueError, NotImplementedError, AttributeError, ImportError, AssertionError)
"""What torch and Triton raise for what is not to be had here. What is wrong ends the benchmark."""


class Stopwatch:
    """Times on a stream of its own, and beside products; each number is the slowest rank's."""

    def __init__(self, case: Case) -> None:
        self._device, self._on_gpu = case.device, case.device.type == "cuda"
        self.product_ms = math.nan
        if not self._on_gpu:
            return
        self._side = torch.cuda.Stream()
        self._filler = torch.zeros(8192, 8192, device=case.device, dtype=torch.bfloat16)
        self._x_TD = torch.randn(len(case.x_TD), case.x_TD.shape[1], device=case.device, dtype=torch.bfloat16)
        self._weight_DF = torch.randn(case.x_TD.shape[1], WIDTH, device=case.device, dtype=torch.bfloat16)
        self._product_TF = self._x_TD @ self._weight_DF
        self.product_ms = self._slowest(min(self._products_ms([])[0] for _ in range(REPEATS)))

    def ms(self, call: Call) -> float:
        """Of one call, with nothing beside it: of some runs the shortest."""
        if not self._on_gpu:
            return math.nan
        times = []
        for n_calls in (2, *[CALLS] * REPEATS):  # the first warms up
            with torch.cuda.stream(self._side):
                self._begin()
                start = self._event()
                for _ in range(n_calls):
                    call()
                end = self._event()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / n_calls)
        return self._slowest(min(times[1:]))

    def beside(self, call: Call, ms: float) -> tuple[float, float, float]:
        """Of a call of about `ms`: ms of a product, of the call, and by how much one call delays products."""
        if not self._on_gpu:
            return math.nan, math.nan, math.nan
        n_calls = min(math.ceil(2 * PRODUCTS * self.product_ms / ms), 100)  # the same on all ranks, so that they meet
        for _ in range(2):  # the first warms up
            product_ms, ended = self._products_ms([call] * n_calls)
        during = [at for at in ended if at <= product_ms * PRODUCTS] or ended[:1]
        delay = (product_ms - self.product_ms) * PRODUCTS / len(during)
        return self._slowest(product_ms), self._slowest(during[-1] / len(during)), self._slowest(delay)

    def _products_ms(self, calls: Sequence[Call]) -> tuple[float, list[float]]:
        """Of one of several, and when each of `calls` beside them ended."""
        self._begin()
        start = self._event()
        for _ in range(PRODUCTS):
            torch.mm(self._x_TD, self._weight_DF, out=self._product_TF)
        end = self._event()
        ended = []
        with torch.cuda.stream(self._side):
            self._side.wait_event(start)
            for call in calls:
                call()
                ended.append(self._event())
        torch.cuda.synchronize()
        return start.elapsed_time(end) / PRODUCTS, [start.elapsed_time(one) for one in ended]

    def _begin(self) -> None:
        """All ranks at once, behind other work, some 18 ms, while what follows is launched."""
        torch.cuda.synchronize()
        dist.barrier()
        for _ in range(12):
            self._filler @ self._filler

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _slowest(self, number: float) -> float:
        of_all = torch.tensor(number, dtype=torch.float64, device=self._device)
        dist.all_reduce(of_all, op=dist.ReduceOp.MAX)
        return of_all.item()


def check(transport: Transport, case: Case) -> None:
    """Raises WrongError where sums are not the experts'."""
    transport.compute(transport.dispatch())
    y_TD = transport.summed(transport.combine())
    error = ((y_TD - case.expected_TD).abs() / (case.expected_TD.abs() + 1e-3)).max().item()
    tolerance = 0.03 if case.x_TD.dtype is torch.bfloat16 else 1e-5
    if not error <= tolerance:  # NaN too
        raise WrongError(f"sums are off by {error:.1e} of themselves")


class Line(NamedTuple):
    name: str
    case: Case
    make: Callable[[], Transport]


def lines(even: Case, skewed: Case, comm: Communicator) -> list[Line]:
    memory = Memory(even)
    made = [Line("rows, NCCL", case, partial(Rows, case, comm)) for case in (even, skewed)]
    made.append(Line("tokens, NCCL", even, partial(Tokens, even, comm)))
    for put, how in ((True, "put"), (False, "taken")):
        made.append(Line(f"copies, {how}", even, partial(Copies, even, memory, put)))
    made.append(Line("torch, taken", even, partial(TorchsOwn, even, memory)))
    for programs in PROGRAMS:
        name = f"wanted, taken, {programs} SMs"
        made += [Line(name, case, partial(Wanted, case, memory, programs)) for case in (even, skewed)]
    return made


def made_and_checked(line: Line) -> Transport | str:
    """Or in a line why it can't be had here, on all ranks if on one."""
    made: Transport | str
    try:
        made = line.make()
        check(made, line.case)
    except RUNS_NOT as error:
        made = f"{type(error).__name__}: {(str(error) or 'no reason given').splitlines()[0][:120]}"
    refused = torch.tensor(float(isinstance(made, str)), device=line.case.device)
    dist.all_reduce(refused)
    return made if isinstance(made, str) or not refused.item() else "another rank can't"


def measured(line: Line, watch: Stopwatch) -> str:
    """What one way takes."""
    transport = made_and_checked(line)
    if isinstance(transport, str):
        return f"refused: {transport}"

    def both() -> None:
        transport.dispatch()
        transport.combine()

    out, back = watch.ms(transport.dispatch), watch.ms(transport.combine)
    product, took, cost = watch.beside(both, out + back)
    mb = transport.mb
    rates = f"{out:8.3f} {mb / out:5.0f} {back:9.3f} {mb / back:5.0f}"
    return f"{mb:7.2f} {rates}  | {product:7.3f} {took:9.3f} {cost:8.3f}"


def main(device_type: str, tokens: int, dim: int) -> None:
    """Print the table on rank 0; on a CPU, to see that all of it runs."""
    torch.set_grad_enabled(False)
    device = torch.device(device_type, int(os.environ["LOCAL_RANK"])) if device_type == "cuda" else torch.device("cpu")
    if device_type == "cuda":
        torch.cuda.set_device(device)
    backend, its_own = ("nccl", device) if device_type == "cuda" else ("gloo", None)
    dist.init_process_group(backend, timeout=PATIENCE, device_id=its_own)
    group = dist.group.WORLD
    assert group is not None

    def says(words: str, end: str = "\n") -> None:
        if group.rank() == 0:
            print(words, end=end, flush=True)

    even, skewed = (Case(name, tokens, dim, skew, device, group) for name, skew in (("even", 0.0), ("skewed", 1.0)))
    watch = Stopwatch(even)
    says(torch.cuda.get_device_name() if device_type == "cuda" else "CPU: no times", end="")
    says(f", torch {torch.__version__}, {group.size()} ranks of {tokens} tokens of {dim}", end="")
    says(f", top {TOP_K} of {EXPERTS}; a product alone {watch.product_ms:.3f} ms")
    for case in (even, skewed):
        ranks = case.wanted_PTR.sum(-1).float().mean().item()
        most = case.pairs_PR.sum(0).max().item() / case.pairs_PR.sum().item() * case.size
        says(f"{case.name}: {ranks:.2f} ranks a token; the busiest has {most:.2f} of an even share of pairs")
    says(f"\n{'':32} {'MB':>7} {'dispatch':>8} {'GB/s':>5} {'combine':>9} {'GB/s':>5}", end="")
    says(f"  | {'product':>7} {'both':>9} {'cost':>8}")
    for line in lines(even, skewed, Communicator()):
        says(f"{line.name:24} {line.case.name:7} {measured(line, watch)}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main("cuda", TOKENS, DIM)
