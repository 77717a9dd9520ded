"""What other libraries, a counting sort and CUDA graphs would gain over what is here, on one GPU, in the sizes of
moe_5b, forward and backward in bfloat16.

    python benchmarks/libraries.py [loss swiglu norm rope optimizer fp8 sort experts graph]

Of each: ms, and GiB that a call holds beyond what is there before it. Medians of five, each of several calls behind a
queue, so that no launch is waited for but where launching is what is asked (graph). liger-kernel and torchao are
installed for this alone (pip install --no-deps liger-kernel torchao); a row that is not there says why in its line.
About two minutes and a half, of which most is compilation; of experts, torchao's kernels tune themselves.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType

import torch
from beside_liger import loss_rows, norm_rows, rope_rows, swiglu_rows
from beside_torchao import expert_rows_in_fp8, fp8_rows, optimizer_rows
from graphed import graph_rows
from timed import tell
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from conf.compose import compose
from models.permutation import Sorted, sort_pairs

TOKENS, TOKENS_OF_SMALL = 16384, 4096
ENOUGH_MS = 0.3
"""Of a step: what a sort must save to be worth a kernel."""
SECTIONS = ("loss", "swiglu", "norm", "rope", "optimizer", "fp8", "sort", "experts", "graph")


def sort_rows(n_places: int, top_k: int, n_layers: int, tokens: int, device: str) -> None:
    """Pairs by expert, once a layer and step, with the number of kernels."""
    experts_TK = torch.rand(tokens, n_places, device=device).topk(top_k).indices
    place_N = experts_TK.flatten()
    expected = sort_pairs(place_N, n_places, False)

    def kernels(sort: Callable[[Tensor, int], Sorted]) -> str:
        if device != "cuda":
            return ""
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            sort(place_N, n_places)
            torch.cuda.synchronize()
        return f"{sum(event.device_type.name == 'CUDA' for event in seen.events())} kernels"

    def by_counting() -> Callable[[Tensor, int], Sorted]:
        from counting_sort import sort_by_counting

        found = sort_by_counting(place_N, n_places)
        if not all(torch.equal(ours, other) for ours, other in zip(expected[:3], found[:3], strict=True)):
            raise AssertionError("it sorts otherwise than models/permutation.py")
        return sort_by_counting

    def radix() -> Callable[[Tensor, int], Sorted]:
        return partial(sort_pairs, some_have_none=False)

    took = []
    for name, make, gpu_only in (("ours", radix, False), ("counting, three kernels", by_counting, True)):
        took.append(
            tell(
                f"sort: {name}",
                lambda make=make: partial(make(), place_N, n_places),
                device,
                gpu_only,
                lambda make=make: kernels(make()),
            )
        )
    if took[0] and took[1]:
        gain = (took[0] - took[1]) * n_layers
        verdict = f"less than {ENOUGH_MS}: leave it" if gain < ENOUGH_MS else f"more than {ENOUGH_MS}"
        print(f"counting saves {gain:.2f} ms of a step of {n_layers} layers, {verdict}")


def installed(package: str) -> str:
    """Its version."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"no {package}"


def main(
    device: str,
    sections: Sequence[str] = SECTIONS,
    names: tuple[str, str] = ("moe_5b", "small"),
    tokens: tuple[int, int] = (TOKENS, TOKENS_OF_SMALL),
    shrink: int = 1,
) -> None:
    """Print the tables; other `names` of models and a divisor `shrink` of what none of them says let a CPU see that all
    of it runs."""
    torch._dynamo.config.recompile_limit = 64  # one for each width
    model, small = (compose([f"model={name}"]).config.model for name in names)
    here = torch.cuda.get_device_name() if device == "cuda" else "CPU: no times"
    print(here, f"torch {torch.__version__}", installed("liger-kernel"), installed("torchao"))
    print(f"{f'{model.name}, {tokens[0]} tokens':46} {'ms':>9} {'GiB':>7}")

    def graphs() -> None:
        for one, n_tokens in zip((model, small), tokens, strict=True):
            graph_rows(one, n_tokens, device)

    n_moe_layers = model.n_layers - model.n_dense_layers
    rows: MappingProxyType[str, Callable[[], None]] = MappingProxyType(
        {
            "loss": partial(loss_rows, model, tokens[0], device),
            "swiglu": partial(swiglu_rows, model, tokens[0], device),
            "norm": partial(norm_rows, model, tokens[0], device),
            "rope": partial(rope_rows, model, tokens[0], device),
            "optimizer": partial(optimizer_rows, device, shrink),
            "fp8": partial(fp8_rows, model, tokens[0], device),
            "sort": partial(sort_rows, model.moe.n_routed, model.moe.top_k, n_moe_layers, tokens[0], device),
            "graph": graphs,
            "experts": partial(expert_rows_in_fp8, device, shrink),
        }
    )
    for section in sections:
        rows[section]()
        if device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    if unknown := set(sys.argv[1:]) - set(SECTIONS):
        sys.exit(f"no rows are called {', '.join(sorted(unknown))}: leave words out, or choose of {' '.join(SECTIONS)}")
    main("cuda", sys.argv[1:] or SECTIONS)
