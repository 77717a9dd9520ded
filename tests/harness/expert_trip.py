"""All tokens to their experts and back, nothing hidden: what a block does, without the block."""

import torch
from torch import Tensor

from models.dispatcher import Dispatcher
from models.experts import RoutedExperts
from models.permutation import count_pairs
from models.router import Routing


def there_and_back(
    dispatcher: Dispatcher, module: RoutedExperts, x_TD: Tensor, routing: Routing
) -> tuple[Tensor, Tensor]:
    """What becomes of the tokens [T, D], and how many pairs of them each logical expert got."""
    counts_E = count_pairs(routing, dispatcher.placement.n_experts)
    leaving = dispatcher.leaving(x_TD, routing)
    coming = [part.begin() for part in leaving.parts]
    going = module(coming, [part.ticket for part in leaving.parts], dispatcher)
    rows_ND = torch.cat([travelling.arrive() for travelling in going])
    return dispatcher.returned(rows_ND, leaving.ticket, routing), counts_E
