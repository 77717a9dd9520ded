"""How many of an attempt's first steps are unlike those that follow."""

WARM_UP = 2
"""Steps before the one that is written down as CUDA graphs: what a library makes at its second call is made by then."""


def settling_steps(cuda_graph: bool) -> int:
    """So many are slower, so that no speed is read from them and no profiler sees them: the one that compiles; with
    CUDA graphs up to the one that is written down."""
    return WARM_UP + 1 if cuda_graph else 1
