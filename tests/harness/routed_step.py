"""Forward and backward of a small model of which this device may hold some of the experts alone."""

import torch
from torch import Tensor

from models.config import ExpertBackend, ModelConfig, MoEConfig, RowBackend
from models.dispatcher import LocalDispatcher
from models.initialise import initialise
from models.placement import ExpertPlacement
from models.rows import build_rows
from models.surroundings import Surroundings
from models.transformer import LossTerms, Transformer

E = 8


def model_on(
    device: str,
    dtype: torch.dtype,
    backend: RowBackend,
    n_ranks: int,
    room_for_all: bool,
    experts: ExpertBackend = ExpertBackend.auto,
) -> Transformer:
    """Rank 0's of `n_ranks` that share the experts; all pairs have a row on one, but for the dropped."""
    moe = MoEConfig(n_routed=E, top_k=2, expert_dim=64, capacity_factor=0.9)
    config = ModelConfig(
        dim=64, n_layers=3, vocab_size=128, dense_dim=64, expert_backend=experts, row_backend=backend, moe=moe
    )
    placement = ExpertPlacement.contiguous(E, n_ranks)
    dispatcher = LocalDispatcher(placement, 0, build_rows(backend), room_for_all)
    model = Transformer(config, dtype, Surroundings(dispatcher))
    initialise(model, seed=0)
    return model.to(device)


def step(model: Transformer, tokens_BS: Tensor) -> None:
    """All that a micro-batch asks of a model, and what a step asks of it after that."""
    terms = model(tokens_BS, tokens_BS)
    assert isinstance(terms, LossTerms)
    (terms.cross_entropy_sum / tokens_BS.numel()).backward()
    model.balance_experts(model.take_routing().chosen_LE)
