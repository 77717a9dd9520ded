"""PeerMemory whose places hold nothing but what was brought: what nobody wants is NaN, not rows of an earlier layer."""

import torch
from torch import Tensor

from parallel.peer_memory import Chosen, PeerMemory, Taking, Wanted


class SpoiltPlaces(PeerMemory):
    """Of others' rows, before each exchange: peers read a rank's own alone."""

    def take(self, x_TD: Tensor, wanted: Wanted, chosen: Chosen | None = None) -> tuple[Tensor, Taking]:
        places = self.place_for_rows(x_TD).chunk(self._size)
        for rank, place_TD in enumerate(places):
            if rank != self._rank:
                place_TD.fill_(torch.nan)
        return super().take(x_TD, wanted, chosen)
