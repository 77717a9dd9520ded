"""A typeface of 3 × 5 dots, for pictures that are written without an imaging library. Small letters are drawn large."""

from collections.abc import Iterator

GLYPHS = {
    "0": "111 101 101 101 111",
    "1": "010 110 010 010 111",
    "2": "111 001 111 100 111",
    "3": "111 001 111 001 111",
    "4": "101 101 111 001 001",
    "5": "111 100 111 001 111",
    "6": "111 100 111 101 111",
    "7": "111 001 010 010 010",
    "8": "111 101 111 101 111",
    "9": "111 101 111 001 111",
    "A": "010 101 111 101 101",
    "B": "110 101 110 101 110",
    "C": "011 100 100 100 011",
    "D": "110 101 101 101 110",
    "E": "111 100 110 100 111",
    "F": "111 100 110 100 100",
    "G": "011 100 101 101 011",
    "H": "101 101 111 101 101",
    "I": "111 010 010 010 111",
    "J": "001 001 001 101 010",
    "K": "101 101 110 101 101",
    "L": "100 100 100 100 111",
    "M": "101 111 111 101 101",
    "N": "110 101 101 101 101",
    "O": "010 101 101 101 010",
    "P": "110 101 110 100 100",
    "Q": "010 101 101 110 011",
    "R": "110 101 110 101 101",
    "S": "011 100 010 001 110",
    "T": "111 010 010 010 010",
    "U": "101 101 101 101 111",
    "V": "101 101 101 101 010",
    "W": "101 101 101 111 101",
    "X": "101 101 010 101 101",
    "Y": "101 101 010 010 010",
    "Z": "111 001 010 100 111",
    ".": "000 000 000 000 010",
    ",": "000 000 000 010 100",
    ":": "000 010 000 010 000",
    "-": "000 000 111 000 000",
    "_": "000 000 000 000 111",
    "/": "001 001 010 100 100",
    "%": "101 001 010 100 101",
    "(": "010 100 100 100 010",
    ")": "010 001 001 001 010",
}
"""Rows from the top."""
DOT = 2
"""Pixels of a dot."""
ADVANCE, HEIGHT = 4 * DOT, 5 * DOT
"""Of a glyph, with the gap that follows it, in pixels."""


def text_width(text: str) -> int:
    """Pixels of `text`."""
    return max(0, len(text) * ADVANCE - DOT)


def dots(text: str, left: int, top: int) -> Iterator[tuple[int, int]]:
    """Upper left corners of the dots of `text`; what has no glyph is a gap."""
    for i, character in enumerate(text.upper()):
        for line, row in enumerate(GLYPHS.get(character, "").split()):
            for column, dot in enumerate(row):
                if dot == "1":
                    yield left + i * ADVANCE + column * DOT, top + line * DOT
