"""Opening a corpus from its configuration, or refusing with what to change."""

import pytest
from omegaconf import OmegaConf

from train.data.config import DataConfig, DataSource
from train.data.corpus import open_corpus
from train.data.source import DataError, check_same_corpus


def test_config_composes_and_checks_types() -> None:
    schema = OmegaConf.structured(DataConfig)
    config = OmegaConf.to_object(OmegaConf.merge(schema, {"source": "synthetic", "sequence_length": 8}))
    assert config == DataConfig(source=DataSource.synthetic, sequence_length=8)


@pytest.mark.parametrize("source", list(DataSource))
def test_ids_fit_the_vocabulary_and_samples_the_length(source: DataSource) -> None:
    corpus = open_corpus(DataConfig(source=source, sequence_length=32), vocab_size=300, seed=0)
    for split in (corpus.train, corpus.heldout):
        assert split.vocab_size <= 300
        assert split.sample(0).shape == (33,)
    assert len(bytes.fromhex(corpus.fingerprint)) == 32


def test_seed_draws_only_the_synthetic_tokens() -> None:
    text, tokens = ([open_corpus(DataConfig(source=source), 256, seed) for seed in (0, 1)] for source in DataSource)
    assert text[0].fingerprint == text[1].fingerprint
    assert tokens[0].fingerprint != tokens[1].fingerprint


def test_small_vocabulary_is_refused_for_bytes() -> None:
    with pytest.raises(DataError, match="needs a vocabulary of at least 256, the model has 255: raise"):
        open_corpus(DataConfig(), vocab_size=255, seed=0)


@pytest.mark.parametrize("source", list(DataSource))
def test_empty_samples_are_refused(source: DataSource) -> None:
    with pytest.raises(DataError, match=r"set data\.sequence_length to at least 1"):
        open_corpus(DataConfig(source=source, sequence_length=0), vocab_size=256, seed=0)


def test_ranks_that_read_different_text_are_refused() -> None:
    check_same_corpus(["a" * 64, "a" * 64])
    with pytest.raises(DataError, match=r"rank 1 reads another corpus than rank 0 \(sha256 b{12} and a{12}\)"):
        check_same_corpus(["a" * 64, "b" * 64])
