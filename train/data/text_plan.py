"""What data=text and data=hf tokenise: which documents, by which tokenizer, into which split."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from json import dumps
from typing import Any

from train.data.config import DataConfig, DataSource, MixturePart
from train.data.documents import FileDocuments
from train.data.feed import BATCH, Feed, by_hash
from train.data.hf_documents import HfDocuments
from train.data.pieces import Documents
from train.data.token_writer import HELDOUT, TRAIN, TokenWriter
from train.data.tokenizer import TextTokenizer, open_tokenizer

VERSION = 1
"""Of the way from text to tokens: another one makes other tokens of the same settings."""


@dataclass(frozen=True)
class TextPlan:
    """Documents to be tokenised."""

    tokenizer: TextTokenizer
    feeds: dict[str, tuple[Documents, Callable[[bytes], str]]]
    """Documents, and the split that a text of them goes to, by a name for the record."""
    settings: dict[str, Any]
    """All that the tokens follow from, as plain values."""

    def start(self, writer: TokenWriter, batch: int = BATCH) -> list[Feed]:
        """The feeds on their way into `writer`, from where its record says. Close them."""
        return [Feed(name, *feed, self.tokenizer, writer, batch) for name, feed in self.feeds.items()]

    @property
    def key(self) -> str:
        """A short name for the settings, as good as unique."""
        return sha256(dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]


def plan_text(source: DataConfig | MixturePart, data: DataConfig, seed: int) -> TextPlan:
    """The plan for `source`, of data=text or data=hf; what a mixture's parts share is in `data`.

    `seed` draws documents from the shuffle buffer. Raises DataError for texts or a tokenizer that are not there.
    """
    tokenizer = open_tokenizer(data.tokenizer, data.end_of_document)
    feeds: dict[str, tuple[Documents, Callable[[bytes], str]]] = {}
    if source.source is DataSource.text:
        files = FileDocuments(source.path or "", source.text_field, source.document)
        feeds["documents"] = (files, by_hash(data.heldout_fraction))
    else:
        train = HfDocuments(source, source.split, "data.split", source.shuffle_buffer, seed)
        if source.heldout_split is None:
            feeds["documents"] = (train, by_hash(data.heldout_fraction))
        else:
            feeds[TRAIN] = (train, lambda _: TRAIN)
            heldout = HfDocuments(source, source.heldout_split, "data.heldout_split", 0, seed)
            feeds[HELDOUT] = (heldout, lambda _: HELDOUT)
    settings: dict[str, Any] = {"version": VERSION}
    for documents, _ in feeds.values():
        settings |= documents.identity()
    if len(feeds) == 1:
        settings["data.heldout_fraction"] = data.heldout_fraction
    settings |= {"data.tokenizer": tokenizer.identity, "data.end_of_document": tokenizer.separator}
    return TextPlan(tokenizer, feeds, settings)
