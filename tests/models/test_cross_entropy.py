"""model.loss_backend: losses of logits by a kernel of ours where it runs, by torch's operators elsewhere."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from harness.interpreted import check_interpreted, needs_triton

from models.config import LossBackend, ModelConfig
from models.cross_entropy import CrossEntropy, OnePassCrossEntropy, build_cross_entropy
from models.head import Head
from models.transformer import Transformer
from parallel.tensor_parallel.vocabulary import VocabularyHead


@needs_triton
def test_the_kernel_is_torchs_operators() -> None:
    check_interpreted("harness.kernel_beside_cross_entropy")


def test_where_the_kernel_does_not_run_auto_is_torch() -> None:
    assert type(build_cross_entropy(LossBackend.torch)) is CrossEntropy
    losses = []
    for backend in LossBackend:
        torch.manual_seed(0)
        model = Transformer(ModelConfig(loss_backend=backend), torch.float32)
        assert model.head is not None
        assert isinstance(model.head.cross_entropy, OnePassCrossEntropy) is (backend is LossBackend.auto)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        tokens_BS = torch.arange(32).view(2, 16) % model.config.vocab_size
        losses.append(model(tokens_BS, tokens_BS).cross_entropy_sum.item())
    assert losses[0] == losses[1]


def test_the_kernel_takes_what_it_computes_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.triton_here.triton_lacks", lambda: None)
    takes = OnePassCrossEntropy().takes
    for dtype, taken in ((torch.bfloat16, True), (torch.float32, True), (torch.float64, False)):
        logits: Any = SimpleNamespace(is_cuda=True, dtype=dtype)
        assert takes(logits) is taken
    assert not takes(torch.zeros(1, 1))


def test_a_part_of_the_vocabulary_is_computed_as_the_whole_would_be() -> None:
    among: Any = SimpleNamespace(group=SimpleNamespace(rank=lambda: 2))
    whole = Head(4, 10, 8, LossBackend.auto)
    part = VocabularyHead(whole, among)
    assert part.cross_entropy is whole.cross_entropy
    assert not part.vocabulary.is_whole  # its sums are its own until the others have had their say
    assert part.vocabulary.first(10) == 20
