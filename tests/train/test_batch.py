"""Documents in a batch: what is learnt from what, and who may see whom."""

import torch

from models.positions import document_mask
from models.whole_vocabulary import IGNORED
from train.batch import BatchMaker

END = 9
#                       one document | its end | the next | its end | an empty one | the last
SAMPLE = torch.tensor([[1, 2, 3, END, 4, END, END, 5, 6]])


def test_a_documents_first_token_is_no_target() -> None:
    make = BatchMaker(END, split_attention=False)
    tokens_BS, targets_BS, documents_BS = make(SAMPLE)
    assert tokens_BS.tolist() == [[1, 2, 3, END, 4, END, END, 5]]
    assert targets_BS.tolist() == [[2, 3, END, IGNORED, END, IGNORED, IGNORED, 6]]
    assert documents_BS is None
    assert make.count_targets(SAMPLE).item() == (targets_BS != IGNORED).sum().item() == 5


def test_attention_stays_in_a_document() -> None:
    documents_BS = BatchMaker(END, split_attention=True)(SAMPLE).documents_BS
    assert documents_BS is not None
    assert documents_BS.tolist() == [[0, 0, 0, 0, 1, 1, 2, 3]]
    seen = document_mask(documents_BS, torch.float32)[0, 0] == 0
    for s, row in enumerate(seen.tolist()):
        assert [t for t, sees in enumerate(row) if sees] == [
            t for t in range(s + 1) if documents_BS[0, t] == documents_BS[0, s]
        ]


def test_without_a_separator_all_tokens_are_one_text() -> None:
    make = BatchMaker(None, split_attention=True)
    tokens_BS, targets_BS, documents_BS = make(SAMPLE)
    assert torch.equal(tokens_BS[:, 1:], targets_BS[:, :-1])
    assert documents_BS is None
    assert make.count_targets(SAMPLE).item() == 8
