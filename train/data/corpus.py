"""Open the corpus that a configuration names."""

from train.data.config import Boundaries, DataConfig, DataSource, MixturePart, choice
from train.data.hf_stream import open_hf
from train.data.mixture import mix, quotas
from train.data.source import Corpus, DataError
from train.data.stdlib import open_stdlib
from train.data.synthetic import open_synthetic
from train.data.text import open_text
from train.data.tokenizer import open_tokenizer
from train.data.tokens import open_tokens


def open_corpus(config: DataConfig, vocab_size: int, seed: int) -> Corpus:
    """The corpus of `config`, every id of which is below the model's `vocab_size`.

    `seed` draws the order of the samples, and the synthetic tokens.
    Raises DataError if the corpus cannot serve this vocabulary or sequence length.
    """
    if config.sequence_length < 1:
        raise DataError(f"sequence_length is {config.sequence_length}: set data.sequence_length to at least 1")
    if config.source is not DataSource.mixture:
        return _open_one("data", config, config, vocab_size, seed)
    names, weights = [part.name for part in config.mixture], [part.weight for part in config.mixture]
    quotas(weights)  # refused before a part is opened, which may take long
    corpora = []
    for key, part in config.sources().items():
        try:
            corpora.append(_open_one(key, part, config, vocab_size, seed))
        except DataError as error:
            raise DataError(f"{key} ({part.name}): {error}") from error
    return mix(names, corpora, weights, seed)


def _open_one(key: str, source: DataConfig | MixturePart, data: DataConfig, vocab_size: int, seed: int) -> Corpus:
    """One body of text; it stands at `key`, and what is common to all parts is in `data`."""
    chosen = choice(key, source.source)
    if source.source in (DataSource.text, DataSource.hf):
        # Before its text is tokenised, which may take long.
        _check_vocabulary(chosen, open_tokenizer(data.tokenizer, data.end_of_document).vocab_size, vocab_size)
    match source.source:
        case DataSource.stdlib:
            corpus = open_stdlib(data.sequence_length, seed)
        case DataSource.synthetic:
            corpus = open_synthetic(data.sequence_length, vocab_size, seed)
        case DataSource.text:
            corpus = open_text(source, data, seed)
        case DataSource.tokens:
            corpus = open_tokens(source, data, vocab_size, seed)
        case DataSource.hf:
            corpus = open_hf(source, data, seed)
        case DataSource.mixture:
            raise DataError(f"{key}.source=mixture: a mixture has no mixture in it")
    _check_vocabulary(chosen, corpus.train.vocab_size, vocab_size)
    if data.boundaries is Boundaries.attention and corpus.separator is None:
        tell = "" if source.source is DataSource.synthetic else "set data.end_of_document to the id that ends one, or "
        raise DataError(
            f"data.boundaries=attention: where documents end in {chosen} is not known; {tell}set data.boundaries=loss"
        )
    return corpus


def _check_vocabulary(chosen: str, needed: int, vocab_size: int) -> None:
    if vocab_size < needed:
        raise DataError(
            f"{chosen} needs a vocabulary of at least {needed}, and the model has {vocab_size}: "
            f"set model.vocab_size to {needed}"
        )
