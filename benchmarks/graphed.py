"""Forward and backward of two MoE blocks as they are launched, and as one CUDA graph: what launching costs.

Beside all else nothing waits for the GPU, and shapes are static: each pair has a row, on one device.
"""

import gc
import statistics
import time
from dataclasses import replace

import torch
from timed import BF16, CALLS, REPEATS, Call, first_line, median_ms, peak_gib
from torch import nn

from models.config import ModelConfig
from models.initialise import initialise
from models.surroundings import Surroundings
from models.transformer import Hidden, Transformer
from parallel.compile import compile_parts

BLOCKS = 2


def graph_rows(model: ModelConfig, tokens: int, device: str) -> None:
    """One table. `in a row`: ms of a call of several that follow each other, launches included where they show;
    `queued`: of one whose launches hide behind some 9 ms of other work; `host`: how long launching takes, a block. What
    a graph needs it holds between calls too, and `GiB` does not see it."""
    blocks = range(model.n_dense_layers, model.n_dense_layers + BLOCKS)
    print(f"{f'graph: {model.name}, {tokens} tokens, {BLOCKS} blocks':46} in a row    queued  host, a block    GiB")
    took: dict[str, float] = {}
    for name in ("as it is", "compiled", "compiled, as a graph"):
        if name != "as it is" and device != "cuda":
            print(f"{name:46} left out: needs a GPU")
            continue
        try:
            call = step_of(model, blocks, tokens, device, compiled=name != "as it is")
            if name.endswith("graph"):
                call = captured(call)
            took[name], host = in_a_row(call, device)
            queued = median_ms(call, device)
            numbers = f"{took[name]:8.3f} {queued:9.3f} {host / BLOCKS:14.3f} {peak_gib(call, device):6.2f}"
            print(f"{name:46} {numbers}", flush=True)
        except Exception as error:
            print(f"{name:46} left out: {first_line(error)}", flush=True)
        call = None
        gc.collect()
    if len(took) == 3:
        gap = (took["compiled"] - took["compiled, as a graph"]) / BLOCKS
        n_layers = model.n_layers - model.n_dense_layers
        print(
            f"a graph takes {gap:.3f} ms a block less, {gap * n_layers:.2f} ms a micro-batch of {n_layers} such blocks"
        )


def step_of(model: ModelConfig, blocks: range, tokens: int, device: str, compiled: bool) -> Call:
    """Of blocks alone, as ranks of a pipeline have them: hidden states in, hidden states out. Parameters in bfloat16,
    as copies of masters are."""
    longer = replace(model, n_layers=blocks.stop + 1)  # the last block would come with norm and head
    with torch.device(device):
        stage = Transformer(longer, BF16, Surroundings.alone(model), blocks)
    initialise(stage, seed=0)
    for module in stage.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach().to(BF16)))
    if compiled:
        compile_parts(stage, False, torch.device(device), BF16)
    length = min(tokens, model.max_sequence_length)
    x_BSD = torch.randn(tokens // length, length, model.dim, device=device, dtype=BF16, requires_grad=True)
    probe, wanted = torch.ones_like(x_BSD), (x_BSD, *stage.parameters())

    def call() -> object:
        hidden = stage(x_BSD)
        assert isinstance(hidden, Hidden)
        gradients = torch.autograd.grad(hidden.x_BSD, wanted, probe)
        for block in stage.layers.values():
            block.dispatch.reset_buffers()  # or each call would add to the last one's
        return gradients

    return call


def captured(call: Call) -> Call:
    """`call` as a graph, after what the first ones compile and keep."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()

    def replay() -> object:
        return call, graph.replay()  # what the graph reads, `call` holds

    return replay


def in_a_row(call: Call, device: str) -> tuple[float, float]:
    """ms of one of several calls, and of launching one that nothing is queued before."""
    for _ in range(3):
        call()
    if device != "cuda":
        return float("nan"), float("nan")
    whole, launching = [], []
    for _ in range(REPEATS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        launching.append(time.perf_counter() - start)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        torch.cuda.synchronize()
        whole.append((time.perf_counter() - start) / CALLS)
    return statistics.median(whole) * 1000, statistics.median(launching) * 1000
