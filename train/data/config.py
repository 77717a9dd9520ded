"""Which text a run trains on, as configuration."""

from collections.abc import Iterable
from dataclasses import Field, dataclass, field, fields
from enum import Enum
from typing import Any, Optional

from models.config import ConfigError


class DataSource(Enum):
    """Where tokens come from."""

    stdlib = "stdlib"
    synthetic = "synthetic"
    text = "text"
    tokens = "tokens"
    hf = "hf"
    mixture = "mixture"


class Boundaries(Enum):
    """What respects the ends of documents."""

    none = "none"
    loss = "loss"
    attention = "attention"


class DocumentUnit(Enum):
    """What a document is in a .txt file."""

    file = "file"
    paragraph = "paragraph"
    line = "line"


class TokenDtype(Enum):
    """How a .bin file holds an id."""

    uint8 = "uint8"
    uint16 = "uint16"
    uint32 = "uint32"
    int32 = "int32"


@dataclass
class SourceConfig:
    """One body of text."""

    source: DataSource = DataSource.stdlib
    """stdlib, synthetic (random), text (files), tokens (tokenised files), hf (streamed dataset), mixture (of these)."""
    path: Optional[str] = None
    """text: a .txt, .jsonl or .parquet file, a folder or a glob; tokens: a .bin or .npy file, or a tokenised folder."""
    text_field: str = "text"
    """text, hf: the field of a record that holds its text (.jsonl, .parquet, datasets)."""
    document: DocumentUnit = DocumentUnit.file
    """text: what a document is in .txt files: the file, a paragraph (between empty lines), or a line."""
    dtype: TokenDtype = TokenDtype.uint16
    """tokens: how a .bin file holds ids, little-endian; .npy files and tokenised folders say it themselves."""
    subset: Optional[str] = None
    """hf: the dataset's configuration, where it has several."""
    split: str = "train"
    """hf: the split to train on."""
    heldout_split: Optional[str] = None
    """hf: the split to evaluate on; null holds out heldout_fraction of the documents."""
    shuffle_buffer: int = 0
    """hf: documents held to draw the next one from at random; 0 keeps the dataset's order."""


@dataclass
class MixturePart(SourceConfig):
    """One part of a mixture."""

    name: str = "stdlib"
    """hf: the dataset, a name on the hub or a local folder; otherwise a name for this part."""
    weight: float = 1.0
    """Share of the samples, relative to the other parts' weights."""


@dataclass
class DataConfig(SourceConfig):
    """What is read, how it is tokenised, and how long a sample is."""

    name: str = "stdlib"
    """hf: the dataset, a name on the hub or a local folder; otherwise a name for this choice, as reports show it."""
    sequence_length: int = 256
    """Tokens of context in a sample; a sample holds one more, the last target."""
    tokenizer: Optional[str] = None
    """text, hf: a tokenizer.json; null takes bytes as ids, and 0 as the end of a document."""
    end_of_document: Optional[str] = None
    """text, hf: the token, or its id, that ends a document (null: the tokenizer's own); bare tokens files: its id."""
    boundaries: Boundaries = Boundaries.loss
    """none; loss: no loss on a document's first token, given another's; attention: also none across documents."""
    heldout_fraction: float = 0.05
    """text, tokens files, hf: the part of the text that is kept for evaluation."""
    cache_dir: str = "~/.cache/switchyard"
    """text, hf: where tokens are kept, so that the next run need not tokenise again."""
    mixture: list[MixturePart] = field(default_factory=list)
    """mixture: the parts, each with a weight and the fields of its source."""

    def sources(self) -> dict[str, "DataConfig | MixturePart"]:
        """What is read, by the key where it stands: itself ("data"), or its parts ("data.mixture[0]", …)."""
        if self.source is not DataSource.mixture:
            return {"data": self}
        return {f"data.mixture[{index}]": part for index, part in enumerate(self.mixture)}

    def check(self) -> None:
        """Refuse fields out of their range, fields that the source lacks, and fields that it does not read.

        Raises:
            ConfigError: naming the key and what to set it to.
        """
        if not 0 < self.heldout_fraction < 1:
            raise ConfigError(f"data.heldout_fraction={self.heldout_fraction}: set it above 0 and below 1, as 0.05")
        parts = self.sources()
        for key, source in ({"data": self} | parts).items():
            if source.shuffle_buffer < 0:
                raise ConfigError(f"{key}.shuffle_buffer={source.shuffle_buffer}: set it to 0 or more")
        # What a source reads for itself, then what stands once for all parts of a mixture.
        _check_unread("data", self, {self.source}, fields(SourceConfig))
        for key, part in parts.items():
            _check_unread(key, part, {part.source}, fields(SourceConfig))
        _check_unread("data", self, {self.source, *(part.source for part in parts.values())}, fields(self))
        if not parts:
            raise ConfigError("data=mixture: set data.mixture to its parts, as [{source: text, path: a.txt}, …]")
        for key, part in parts.items():
            _check_needed(key, part)
        if self.source is DataSource.hf and self.heldout_split is not None and _is_set(self, "heldout_fraction"):
            raise ConfigError(
                f"data.heldout_fraction={self.heldout_fraction}: data.heldout_split={self.heldout_split} is what is "
                "held out; leave one of them out"
            )


READERS = {
    "source": set(DataSource),
    "name": set(DataSource),
    "weight": set(DataSource),
    "path": {DataSource.text, DataSource.tokens},
    "text_field": {DataSource.text, DataSource.hf},
    "document": {DataSource.text},
    "dtype": {DataSource.tokens},
    "subset": {DataSource.hf},
    "split": {DataSource.hf},
    "heldout_split": {DataSource.hf},
    "shuffle_buffer": {DataSource.hf},
    "sequence_length": set(DataSource),
    "tokenizer": {DataSource.text, DataSource.hf},
    "end_of_document": {DataSource.text, DataSource.tokens, DataSource.hf},
    "boundaries": set(DataSource),
    "heldout_fraction": {DataSource.text, DataSource.tokens, DataSource.hf},
    "cache_dir": {DataSource.text, DataSource.hf},
    "mixture": {DataSource.mixture},
}
"""Which sources read a field; a mixture's parts read what stands beside `mixture` for it."""


def _check_unread(key: str, config: SourceConfig, sources: set[DataSource], names: Iterable[Field[Any]]) -> None:
    """Refuse a field of `config` among `names` that is set, and that none of `sources` reads."""
    for name in (entry.name for entry in names):
        if _is_set(config, name) and not READERS[name] & sources:
            value = getattr(config, name)
            shown = value.value if isinstance(value, Enum) else "[…]" if isinstance(value, list) else value
            others = ", ".join(sorted(source.value for source in sources - {config.source}))
            chosen = config.source.value + (f" (of {others})" if others else "")
            choices = " or ".join(choice(key, reader) for reader in DataSource if reader in READERS[name])
            raise ConfigError(
                f"{key}.{name}={shown}: {key}.source={chosen} reads no {name}; leave it out, or choose {choices}"
            )


def _check_needed(key: str, source: DataConfig | MixturePart) -> None:
    """Refuse a source that lacks what it reads."""
    chosen = choice(key, source.source)
    if source.source is DataSource.mixture:
        raise ConfigError(f"{chosen}: a mixture has no mixture in it; list its parts in data.mixture too")
    if isinstance(source, MixturePart) and source.weight <= 0:
        raise ConfigError(f"{key}.weight={source.weight}: set it above 0, or leave the part out")
    if source.source is DataSource.text and source.path is None:
        raise ConfigError(f"{chosen}: set {key}.path to a .txt, .jsonl or .parquet file, a folder or a glob")
    if source.source is DataSource.tokens and source.path is None:
        raise ConfigError(f"{chosen}: set {key}.path to a .bin or .npy file, or a folder of switchyard tokenize")
    # A preset's own name is not a dataset's.
    if source.source is DataSource.hf and source.name in DataSource.__members__:
        raise ConfigError(f"{chosen}: set {key}.name to a dataset, a name on the hub or a local folder (as ./folder)")


def choice(key: str, source: DataSource) -> str:
    """How `source` is chosen where `key` ("data", "data.mixture[0]") stands."""
    return f"data={source.value}" if key == "data" else f"{key}.source={source.value}"


def _is_set(config: SourceConfig, name: str) -> bool:
    return bool(getattr(config, name) != getattr(type(config)(), name))
