"""Opening a corpus from its configuration, or refusing with what to change."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.small_tokenizer import write_tokenizer
from omegaconf import OmegaConf

from train.data.config import Boundaries, DataConfig, DataSource, MixturePart
from train.data.corpus import open_corpus
from train.data.mixture import BLOCK
from train.data.source import DataError, check_same_corpus


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    """Tokens 1000 … 1099, over and over: no byte is one."""
    path = tmp_path / "ids.npy"
    np.save(path, np.tile(np.arange(1000, 1100, dtype=np.uint16), 100))
    return path


@pytest.fixture
def configs(tmp_path: Path, ids: Path) -> dict[DataSource, DataConfig]:
    """One of each source that needs no network."""
    (tmp_path / "a.txt").write_text("\n".join(f"line {i} of a text\n" for i in range(1000)))
    fields: dict[DataSource, dict[str, Any]] = {
        DataSource.stdlib: {},
        DataSource.synthetic: {},
        DataSource.text: {"path": str(tmp_path / "a.txt"), "cache_dir": str(tmp_path / "cache")},
        DataSource.tokens: {"path": str(ids)},
        DataSource.mixture: {"mixture": [MixturePart(), MixturePart(DataSource.tokens, str(ids), weight=3.0)]},
    }
    return {source: DataConfig(source=source, sequence_length=32, **more) for source, more in fields.items()}


SOURCES = [source for source in DataSource if source is not DataSource.hf]


def test_config_composes_and_checks_types() -> None:
    schema = OmegaConf.structured(DataConfig)
    config = OmegaConf.to_object(OmegaConf.merge(schema, {"source": "synthetic", "sequence_length": 8}))
    assert config == DataConfig(source=DataSource.synthetic, sequence_length=8)


@pytest.mark.parametrize("source", SOURCES)
def test_ids_fit_the_vocabulary_and_samples_the_length(
    source: DataSource, configs: dict[DataSource, DataConfig]
) -> None:
    if source is DataSource.text:
        configs[source].document = configs[source].document.paragraph
    configs[source].check()
    corpus = open_corpus(configs[source], vocab_size=1200, seed=0)
    for split in (corpus.train, corpus.heldout):
        assert split.vocab_size <= 1200
        for position in (0, 10**6):  # without end
            assert split[position].shape == (33,)
            assert split[position].max() < 1200
    assert len(bytes.fromhex(corpus.fingerprint)) == 32


def test_seed_draws_only_the_synthetic_tokens() -> None:
    def fingerprints(source: DataSource) -> list[str]:
        return [open_corpus(DataConfig(source=source), 256, seed).fingerprint for seed in (0, 1)]

    assert len(set(fingerprints(DataSource.stdlib))) == 1
    assert len(set(fingerprints(DataSource.synthetic))) == 2


def test_a_mixture_takes_its_shares(configs: dict[DataSource, DataConfig]) -> None:
    corpus = open_corpus(configs[DataSource.mixture], vocab_size=1200, seed=0)
    for stream in (corpus.train, corpus.heldout):
        from_file = Counter(bool(stream[position][0] >= 1000) for position in range(BLOCK))
        assert from_file == {True: BLOCK * 3 // 4, False: BLOCK // 4}
    assert (corpus.separator, corpus.tokenizer) == (0, "bytes")  # the standard library's; the file's are not known
    assert corpus.train.vocab_size == 1200


def test_weights_are_refused_before_a_part_is_opened() -> None:
    parts = [MixturePart(DataSource.tokens, "no/such.npy", weight=weight) for weight in (1.0, 1e-6)]
    with pytest.raises(DataError, match=r"^data\.mixture\[1\]\.weight=1e-06 is 1e-06 of all"):
        open_corpus(DataConfig(DataSource.mixture, mixture=parts), vocab_size=256, seed=0)


def test_small_vocabulary_is_refused(configs: dict[DataSource, DataConfig]) -> None:
    with pytest.raises(
        DataError, match=r"^data=stdlib needs a .* at least 256, .* has 255: set model\.vocab_size to 256$"
    ):
        open_corpus(DataConfig(), vocab_size=255, seed=0)
    with pytest.raises(
        DataError, match=r"ids\.npy: token 0 is 1000, .* of 1000: set model\.vocab_size to at least 1100,"
    ):
        open_corpus(configs[DataSource.tokens], vocab_size=1000, seed=0)
    with pytest.raises(DataError, match=r"^data\.mixture\[1\] \(stdlib\): .*set model\.vocab_size to at least 1100"):
        open_corpus(configs[DataSource.mixture], vocab_size=1000, seed=0)


@pytest.mark.parametrize("source", SOURCES)
def test_empty_samples_are_refused(source: DataSource, configs: dict[DataSource, DataConfig]) -> None:
    configs[source].sequence_length = 0
    with pytest.raises(DataError, match=r"set data\.sequence_length to at least 1"):
        open_corpus(configs[source], vocab_size=1200, seed=0)


def test_attention_inside_documents_needs_to_know_where_they_end(configs: dict[DataSource, DataConfig]) -> None:
    for config in configs.values():
        config.boundaries = Boundaries.attention
    with pytest.raises(DataError, match=r"documents end in data=synthetic is not known; set data\.boundaries=loss$"):
        open_corpus(configs[DataSource.synthetic], vocab_size=1200, seed=0)
    said = r"documents end in data=tokens is not known; set data\.end_of_document to the id that ends one, or set"
    with pytest.raises(DataError, match=said):
        open_corpus(configs[DataSource.tokens], vocab_size=1200, seed=0)
    with pytest.raises(DataError, match=r"documents end in data\.mixture\[1\]\.source=tokens is not known"):
        open_corpus(configs[DataSource.mixture], vocab_size=1200, seed=0)
    configs[DataSource.tokens].end_of_document = "1000"
    assert open_corpus(configs[DataSource.tokens], vocab_size=1200, seed=0).separator == 1000
    assert open_corpus(configs[DataSource.stdlib], vocab_size=1200, seed=0).separator == 0


def test_ranks_that_read_different_text_are_refused() -> None:
    check_same_corpus(["a" * 64, "a" * 64])
    with pytest.raises(DataError, match=r"rank 1 reads another corpus than rank 0 \(sha256 b{12} and a{12}\)"):
        check_same_corpus(["a" * 64, "b" * 64])


def test_a_tokenizer_too_large_for_the_model_is_refused_before_it_tokenises(
    configs: dict[DataSource, DataConfig], tmp_path: Path
) -> None:
    config = configs[DataSource.text]
    config.tokenizer = str(write_tokenizer(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match=r"needs a vocabulary of at least (\d+), .* model.vocab_size to \1$"):
        open_corpus(config, 256, seed=0)
    assert not (tmp_path / "cache").exists()
