"""What of a block is computed between collectives, part by part: what can be recomputed, or compiled, as one."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import nn

from models.block import Block
from models.transformer import Transformer


class BlockMethod(NamedTuple):
    """One method of one part of a block; it, and not a wrapper of the part, is replaced: names stay as they are, and
    the hooks of FSDP2, which gather weights before a part runs, stay around it."""

    part: nn.Module
    name: str

    def wrap(self, wrapper: Callable[..., Any]) -> None:
        """Have `wrapper` make the method another one, in place."""
        setattr(self.part, self.name, wrapper(getattr(self.part, self.name)))


def block_methods(stage: Transformer, shared_in_halves: bool) -> Iterator[BlockMethod]:
    """Attention with the router, the routed experts' products, and the shared ones or the dense feed-forward, of all
    blocks of `stage`. Dispatch and combine are in none: no row travels inside.

    `shared_in_halves`: shared experts are called by their two halves (overlap.shared_experts).
    """
    for block in stage.layers.values():
        assert isinstance(block, Block)
        yield BlockMethod(block.attention, "forward")
        routed, shared = block.experts.routed, block.experts.shared
        if routed is not None:
            yield BlockMethod(routed, "compute")
        if shared is not None:
            for name in ("widen", "narrow") if shared_in_halves and routed is not None else ("forward",):
                yield BlockMethod(shared, name)
