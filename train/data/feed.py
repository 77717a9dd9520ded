"""Documents on their way into a TokenWriter: read, encoded and written at the same time, in a thread each."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b

import numpy as np

from train.data.pieces import Documents, Mark, Piece
from train.data.prefetch import Prefetcher
from train.data.token_writer import HELDOUT, SPLITS, TRAIN, TokenWriter, id_dtype
from train.data.tokenizer import TextTokenizer

BATCH = 2**22
"""Characters that are encoded together: enough pieces to keep many cores busy."""


@dataclass
class FeedState:
    """How far a feed is."""

    part: int = 0
    piece: int = 0
    open: str | None = None
    """The split that the last piece went to, if its document goes on."""
    documents: int = 0
    """Documents written whole."""
    bytes: int = 0
    """Of text in UTF-8."""
    done: bool = False


class Feed:
    """One sequence of documents, piece by piece into the split that `route` gives for a piece's bytes.

    A separator ends every document in the split of its last piece; where a document goes on in the other split, one
    stands at the jump too.
    """

    def __init__(
        self,
        name: str,
        documents: Documents,
        route: Callable[[bytes], str],
        tokenizer: TextTokenizer,
        writer: TokenWriter,
        batch: int = BATCH,
    ) -> None:
        """Go on from the writer's record of the feed `name`; threads start at once, so close it."""
        self.name, self.documents = name, documents
        self.state = FeedState(**writer.progress.feeds.get(name, {}))
        self._tokenizer, self._route, self._writer, self._batch = tokenizer, route, writer, batch
        self._separator = np.array([tokenizer.separator], dtype=id_dtype(tokenizer.vocab_size))
        self._pieces = documents.pieces(Mark(self.state.part, self.state.piece))
        self._reader = Prefetcher(self._read, 2)
        self._encoder = Prefetcher(self._encode, 2)

    def step(self) -> None:
        """Write the next batch, or find that there is none: `state.done`. Commits nothing. Raises DataError."""
        pieces, encoded = self._encoder.get()
        ids: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
        state = self.state
        for piece, piece_ids in zip(pieces, encoded, strict=True):
            text = piece.text.encode()
            split = self._route(text)
            if state.open not in (None, split):
                ids[state.open].append(self._separator)
            ids[split].append(piece_ids)
            if piece.last:
                ids[split].append(self._separator)
            state.open = None if piece.last else split
            state.documents += piece.last
            state.bytes += len(text)
            state.part, state.piece = piece.mark
        state.done = not pieces
        for split, arrays in ids.items():
            if arrays:
                self._writer.append(split, np.concatenate(arrays))
        self._writer.progress.feeds[self.name] = asdict(state)

    def close(self) -> None:
        """Stop the threads. May be called again."""
        self._encoder.close()
        self._reader.close()

    def _read(self) -> list[Piece]:
        """The next pieces; none at the end."""
        pieces: list[Piece] = []
        size = 0
        for piece in self._pieces:
            pieces.append(piece)
            size += len(piece.text)
            if size >= self._batch:
                break
        return pieces

    def _encode(self) -> tuple[Sequence[Piece], Iterable[np.ndarray]]:
        pieces = self._reader.get()
        return pieces, self._tokenizer.encode_batch([piece.text for piece in pieces]) if pieces else ()


def by_hash(heldout_fraction: float) -> Callable[[bytes], str]:
    """A route that holds out texts by their hash, so that the same text is never on both sides."""
    limit = int(heldout_fraction * 2**64)

    def route(text: bytes) -> str:
        return HELDOUT if int.from_bytes(blake2b(text, digest_size=8).digest(), "little") < limit else TRAIN

    return route
