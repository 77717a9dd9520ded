"""Documents as pieces: long ones are cut, so that tokenising is parallel and takes little memory."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

PIECE = 2**17
"""Characters of the longest piece."""


class Mark(NamedTuple):
    """How far documents were read."""

    part: int
    """Parts (files; of a dataset, documents) that were read to their end."""
    piece: int
    """Pieces of the next part that were read."""


START = Mark(0, 0)


@dataclass(frozen=True)
class Piece:
    """A document, or a part of a long one. Never empty."""

    text: str
    last: bool
    """Whether its document ends here."""
    mark: Mark
    """Where to go on after it."""


class Documents(Protocol):
    """Texts in a fixed order."""

    def pieces(self, start: Mark) -> Iterator[Piece]:
        """All pieces from `start` on; the same ones, cut at the same places, at each call. Raises DataError."""

    @property
    def part_bytes(self) -> Sequence[int] | None:
        """Bytes of each part as it is stored, to show how much is done; None if that is not known."""

    def identity(self) -> dict[str, object]:
        """What the texts follow from, as plain values by the key that a user sets."""


def cut(chunks: Iterable[str], length: int = PIECE) -> Iterator[tuple[str, bool]]:
    """The text that `chunks` make up, as pieces of at most `length` characters, each with whether it is the last.

    A piece ends at a line's end, else before a space, else anywhere between two characters. Where depends on the text
    alone, not on its chunks. A blank text has no pieces.
    """
    text, blank = "", True
    for chunk in chunks:
        text, start = text + chunk, 0
        while len(text) - start > length:
            # Not the first character: a piece that begins with a space would end before it, and be empty.
            end = text.rfind("\n", start, start + length) + 1 or text.rfind(" ", start + 1, start + length)
            end = end if end > start else start + length
            yield text[start:end], False
            start, blank = end, False
        text = text[start:]
    if not blank or text.strip():
        yield text, True
