"""Sequences gathered and scattered in chunks, each behind the products of another: overlap.async_tp (Wang et al. 2023).

    query, key, value    tp        g0  g1     g2              gathers are begun at once, and travel in order
                         compute      │P(0)  │P(1)  │P(2)     exposed: g0
    attention            compute                              whole sequences: chunks change nobody's neighbours
    output               compute   P(0) │P(1)  │P(2) │        exposed: s2
                         tp             │s0    │s1   │s2
    feed-forward         compute      │F(0)  │F(1)  │F(2) │   exposed: g0 and s2
                         tp        g0  g1    │s0    │s1   │s2

Backward is the same in a mirror: gradients of outputs are gathered, those of inputs scattered, chunk by chunk from the
last one, each behind the products that make the gradients of another chunk's inputs and of the weights.

    feed-forward         compute      │B(2)  │B(1)  │B(0) │
                         tp        s2' s1' s0'│g2'  │g1'  │g0'

With C chunks a C-th stays exposed, and products are C times smaller, each rounds its weights to the compute dtype anew,
and the weights' gradients are C summands: few are best. Chunk c is part c of *each* rank's
part of the sequence, so that gathering it takes all ranks alike, and rank r's tokens are r·s + c·n … r·s + (c + 1)·n.

torch's symmetric memory has this in one operator (torch.ops.symm_mem.fused_all_gather_matmul and
fused_matmul_reduce_scatter). Not here yet: they need CUDA with peer access between all ranks, know no gloo to be proven
on, compute no backward, and issue collectives that no count or clock of ours sees.

B batch, S sequence, s = S/R a rank's part of it, R ranks, C chunks, n = s/C, D model width, F any width.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from parallel.collective_functions import Among, Gather, Scatter


def gathered(x_BsD: Tensor, among: Among, n_chunks: int) -> Iterator[Tensor]:
    """The chunks of all ranks, [B, R·n, D] each: all set off at once, each is waited for when it is asked for."""
    gather = Gather(among)
    under_way = [gather.begin(chunk_BnD.transpose(0, 1)) for chunk_BnD in x_BsD.chunk(n_chunks, dim=1)]
    for travelling in under_way:
        yield travelling.arrive().transpose(0, 1)


def scattered(partial_sums: Iterable[Tensor], among: Among) -> Tensor:
    """This rank's part [B, s, D] of the sum of all ranks' chunks [B, R·n, D]: each sets off before the next one is
    made."""
    scatter = Scatter(among)
    under_way = [scatter.begin(partial.transpose(0, 1)) for partial in partial_sums]
    return joined([travelling.arrive() for travelling in under_way], dim=0).transpose(0, 1)


def joined(chunks: Sequence[Tensor], dim: int) -> Tensor:
    """One after another; a single one as it is."""
    return chunks[0] if len(chunks) == 1 else torch.cat(list(chunks), dim)


def in_sequence(chunks: Sequence[Tensor], n_ranks: int) -> Tensor:
    """Chunks [B, R·n, F] to whole sequences [B, S, F]."""
    if len(chunks) == 1:
        return chunks[0]
    return torch.stack([chunk.unflatten(1, (n_ranks, -1)) for chunk in chunks], dim=2).flatten(1, 3)


def in_chunks(x_BSF: Tensor, n_ranks: int, n_chunks: int) -> list[Tensor]:
    """Whole sequences [B, S, F] to chunks [B, R·n, F]."""
    return [chunk.flatten(1, 2) for chunk in x_BSF.unflatten(1, (n_ranks, n_chunks, -1)).unbind(2)]
