"""Open the corpus that a configuration names."""

from train.data.config import DataConfig, DataSource
from train.data.source import Corpus, DataError
from train.data.stdlib import open_stdlib
from train.data.synthetic import open_synthetic


def open_corpus(config: DataConfig, vocab_size: int, seed: int) -> Corpus:
    """The corpus of `config`, every id of which is below the model's `vocab_size`.

    `seed` draws the synthetic tokens; the standard library's text does not depend on it.
    Raises DataError if the corpus cannot serve this vocabulary or sequence length.
    """
    if config.sequence_length < 1:
        raise DataError(f"sequence_length is {config.sequence_length}: set data.sequence_length to at least 1")
    match config.source:
        case DataSource.stdlib:
            corpus = open_stdlib(config.sequence_length)
        case DataSource.synthetic:
            corpus = open_synthetic(config.sequence_length, vocab_size, seed)
    needed = corpus.train.vocab_size
    if vocab_size < needed:
        raise DataError(
            f"source {config.source.value!r} needs a vocabulary of at least {needed}, the model has {vocab_size}: "
            f"raise the model's vocab_size to {needed}"
        )
    return corpus
