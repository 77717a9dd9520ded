"""A PNG of flat colours: an indexed image, zlib and four chunks (W3C Portable Network Graphics, third edition)."""

import struct
import zlib
from collections.abc import Iterable, Sequence

from launch.glyphs import DOT


class Canvas:
    """Pixels to be filled, of the colours of a palette."""

    def __init__(self, width: int, height: int, palette: Sequence[str]) -> None:
        """All of it the first colour of `palette`, up to 256 of them as #rrggbb."""
        self._palette = list(palette)
        self._width = width
        self._rows = [bytearray(width) for _ in range(height)]

    def fill(self, x: int, y: int, width: int, height: int, colour: str) -> None:
        """A rectangle from its upper left corner."""
        line = bytes([self._palette.index(colour)]) * max(0, width)
        for row in self._rows[y : y + max(0, height)]:
            row[x : x + len(line)] = line

    def draw(self, dots: Iterable[tuple[int, int]], colour: str) -> None:
        """Squares of DOT pixels, from their upper left corners."""
        for x, y in dots:
            self.fill(x, y, DOT, DOT, colour)

    def encode(self) -> bytes:
        """The file."""
        header = struct.pack(">IIBBBBB", self._width, len(self._rows), 8, 3, 0, 0, 0)  # 8 bits a pixel, indexed
        colours = bytes.fromhex("".join(colour[1:] for colour in self._palette))
        pixels = zlib.compress(b"".join(b"\0" + row for row in self._rows), 9)  # each line unfiltered
        chunks = {b"IHDR": header, b"PLTE": colours, b"IDAT": pixels, b"IEND": b""}
        return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks.items())


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
