"""From text to ids: bytes, or a tokenizer.json. Either way one id ends a document, and no text holds that id."""

import os
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from train.data.source import DataError

USUAL_ENDS = (
    *("<|endoftext|>", "<|end_of_text|>", "<|end▁of▁sentence|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>", "<EOS>"),
    *("<|eos|>", "<|endofdocument|>", "[EOS]", "[SEP]"),
)
"""What tokenizers call the token that ends a document: GPT-2 and NeoX, Llama 3, DeepSeek, Llama, Gemma, …, BERT."""


class TextTokenizer(Protocol):
    """Ids for texts."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""

    @property
    def separator(self) -> int:
        """The id that ends a document. It comes out of no text."""

    @property
    def identity(self) -> str:
        """`bytes`, or the SHA-256 of the tokenizer.json: equal iff texts get the same ids."""

    def encode_batch(self, texts: Sequence[str]) -> Iterable[np.ndarray]:
        """The ids of each text as uint8 or uint32 [ids]; the separator is not added. Releases the GIL where it can."""


class ByteTokenizer:
    """UTF-8 bytes as ids. 0 ends a document, so NUL is left out of texts."""

    vocab_size = 256
    separator = 0
    identity = "bytes"

    def encode_batch(self, texts: Sequence[str]) -> Iterable[np.ndarray]:
        """The bytes of each text."""
        return (np.frombuffer(text.encode().replace(b"\0", b""), dtype=np.uint8) for text in texts)


class FileTokenizer:
    """A tokenizer.json, through the `tokenizers` package, whose threads encode the texts of a batch in parallel."""

    def __init__(self, path: str, end_of_document: str | None) -> None:
        """Read `path`; `end_of_document` is a token of it, or its id, and None looks for one of USUAL_ENDS.

        Raises:
            DataError: if the package or the file is not there, or the file is no tokenizer, or has no such token.
        """
        try:
            import tokenizers
        except ImportError as error:
            raise DataError(
                "data.tokenizer needs the package tokenizers: pip install 'switchyard[data]', or leave data.tokenizer "
                "out and train on bytes"
            ) from error
        file = Path(os.path.expanduser(path))
        if file.is_dir():
            raise DataError(f"data.tokenizer={path} is a folder: name the tokenizer.json in it")
        try:
            content = file.read_bytes()
            tokenizer: Any = tokenizers.Tokenizer.from_str(content.decode())
        except OSError as error:
            raise DataError(
                f"data.tokenizer={path} cannot be read ({error.strerror}): name a tokenizer.json"
            ) from error
        except Exception as error:  # the package raises plain Exception for all that it cannot parse
            raise DataError(f"data.tokenizer={path} is no tokenizer.json: {str(error).splitlines()[0]}") from error
        tokenizer.no_truncation()  # a file may bear what its last user had set
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # text that spells <|endoftext|> does not end a document
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise DataError(f"data.tokenizer={path} has no tokens: name a trained tokenizer.json")
        self.vocab_size = max(vocabulary.values()) + 1
        self.separator = find_end(vocabulary, end_of_document, path)
        self.identity = sha256(content).hexdigest()
        self._tokenizer = tokenizer
        spelled = tokenizer.decode([self.separator], skip_special_tokens=False)
        if self.separator in next(iter(self.encode_batch([spelled]))):
            raise DataError(
                f"data.end_of_document={self.separator}: text that holds {spelled!r} would end its document there; "
                f"set it to a token that {path} has as special"
            )

    def encode_batch(self, texts: Sequence[str]) -> Iterable[np.ndarray]:
        """The ids of each text: encoded now, and turned into arrays as they are asked for."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return (np.array(encoding.ids, dtype=np.uint32) for encoding in encodings)


def open_tokenizer(path: str | None, end_of_document: str | None) -> TextTokenizer:
    """The tokenizer that data.tokenizer and data.end_of_document name; bytes if `path` is None. Raises DataError."""
    if path is not None:
        return FileTokenizer(path, end_of_document)
    if end_of_document not in (None, "0"):
        raise DataError(
            f"data.end_of_document={end_of_document}: bytes end a document with 0; leave it out, or set data.tokenizer"
        )
    return ByteTokenizer()


def find_end(vocabulary: dict[str, int], wanted: str | None, path: str) -> int:
    """The id in `vocabulary` that ends a document: `wanted`, a token or an id in digits, or the first usual one.

    Raises:
        DataError: if there is none; `path` is where the vocabulary is from.
    """
    if wanted is None:
        for token in USUAL_ENDS:
            if token in vocabulary:
                return vocabulary[token]
        raise DataError(
            f"data.tokenizer={path} has none of the usual tokens that end a document: set data.end_of_document to "
            "the one of its tokens, or the id, that does"
        )
    if wanted.isascii() and wanted.isdigit():
        if int(wanted) in vocabulary.values():
            return int(wanted)
        raise DataError(
            f"data.end_of_document={wanted}: {path} has no such id; its ids end at {max(vocabulary.values())}"
        )
    if wanted in vocabulary:
        return vocabulary[wanted]
    raise DataError(f"data.end_of_document={wanted}: {path} has no such token; name one that it has, or an id")
