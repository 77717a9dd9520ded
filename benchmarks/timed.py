"""How benchmarks on one GPU time a call, and how they tell it."""

import gc
import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn

Call = Callable[[], object]

BF16 = torch.bfloat16
CALLS, REPEATS = 5, 5
RUNS_NOT = (RuntimeError, ValueError, NotImplementedError)
"""What torch raises for products that it does not have here."""


def median_ms(call: Call, device: str) -> float:
    """Of one call. Other work, some 9 ms, is queued first, while the calls behind it are launched."""
    for _ in range(2):
        call()
    if device != "cuda":
        return float("nan")
    filler = torch.zeros(8192, 8192, device=device, dtype=BF16)
    times = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        for _ in range(6):
            filler @ filler
        start.record()
        for _ in range(CALLS):
            call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / CALLS)
    return statistics.median(times)


def took(call: Call | None, device: str) -> float | None:
    """None where torch has no such product."""
    if call is None:
        return None
    try:
        return median_ms(call, device)
    except RUNS_NOT as error:
        print(f"  refused: {first_line(error)}")
        return None


def peak_gib(call: Call, device: str) -> float:
    """The most that one call holds beyond what is there before it."""
    if device != "cuda":
        return float("nan")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def tell(
    name: str, make: Callable[[], Call], device: str, gpu_only: bool = False, note: Callable[[], str] | None = None
) -> float | None:
    """Print ms and GiB of what `make` makes, and what `note` says of it; or, in a line, why there are none.

    Libraries raise what they like: any error leaves out its row alone.
    """
    if gpu_only and device != "cuda":
        print(f"{name:46} left out: needs a GPU")
        return None
    ms = None
    try:
        call = make()
        ms = median_ms(call, device)
        print(f"{name:46} {ms:9.3f} {peak_gib(call, device):7.2f}  {note() if note else ''}".rstrip(), flush=True)
    except Exception as error:
        print(f"{name:46} left out: {first_line(error)}", flush=True)
    call = None
    gc.collect()  # of what failed, frames hold tensors
    return ms


def gradient_call(forward: Callable[[], tuple[Tensor, ...]], wanted: tuple[Tensor, ...]) -> Call:
    """Forward and backward: gradients of `wanted`, each output's own gradient being ones."""
    probes: tuple[Tensor, ...] = ()

    def call() -> object:
        nonlocal probes
        outputs = forward()
        probes = probes or tuple(torch.ones_like(output) for output in outputs)
        return torch.autograd.grad(outputs, wanted, probes)

    return call


def module_call(module: nn.Module, x: Tensor) -> Call:
    """Forward and backward of one that takes and makes one tensor."""
    return gradient_call(lambda: (module(x),), (x, *module.parameters()))


def compiled_call(module: nn.Module, x: Tensor) -> Call:
    """The same, compiled. `module` has the parameters; what is compiled has not changed their names."""
    compiled = torch.compile(module, fullgraph=True, dynamic=False)
    return gradient_call(lambda: (compiled(x),), (x, *module.parameters()))


def first_line(error: BaseException) -> str:
    """Of what it says, cut."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {said}"[:140]
