"""A TIFF file's directories, read for what they claim: libtiff takes memory for all of it.

Source: TIFF revision 6.0, sections 2 and 15 (tiles), and BigTIFF, whose counts have 64 bits.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from diffreg.data._limits import check_claim, check_coded

# Tags: width, length and depth, of a page and of its tiles.
_PAGE, _TILE = (256, 257, 32997), (322, 323, 32998)
_SUBFILE, _BITS, _COMPRESSION, _SAMPLES, _ROWS, _PLANES = 254, 258, 259, 277, 278, 284
_USED = (*_PAGE, *_TILE, _SUBFILE, _BITS, _COMPRESSION, _SAMPLES, _ROWS, _PLANES)
_WHOLE = {1: "B", 3: "H", 4: "I", 16: "Q"}  # types of whole numbers
_BYTES = {1: 1, 2: 1, 6: 1, 7: 1, 3: 2, 8: 2, 4: 4, 9: 4, 11: 4, 13: 4, 5: 8, 10: 8, 12: 8}
_BYTES |= {16: 8, 17: 8, 18: 8}
_Tags = dict[int, int]  # the first number of each


def check_directories(path: Path) -> int:
    """Refuse a file whose directories claim more than its size allows.

    Returns:
        The bits of a number of the first page.

    Raises:
        ValueError: it is no TIFF file, a directory reaches past its end, or its pages have more
            numbers, or more strips or tiles, than it can hold.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            pages = list(_Directories(file, size))
        claims = [_claimed(page, size) for page in pages if page.get(_SUBFILE, 0) & 5 == 0]
    except (ValueError, EOFError, struct.error) as error:
        reason = "it ends within a directory" if isinstance(error, struct.error) else error
        raise ValueError(f"{path} is damaged or no such file: {reason}") from error
    total = max(sum(claims), len(claims) * (claims or [0])[0])  # ITK gives all the first's size
    check_coded(total, path)
    if all(page.get(_COMPRESSION, 1) == 1 for page in pages):
        check_claim(total // 4, path, packed=False)  # colours may be there for every fourth pixel
    return pages[0].get(_BITS, 1)


class _Directories:
    """The tags of each directory of a file, one a page."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size
        self.order = {b"II": "<", b"MM": ">"}.get(file.read(2), "")
        version = self._number("H")
        if not self.order or version not in (42, 43):
            raise ValueError("it does not begin as TIFF files do")
        big = version == 43
        self.word, self.count, self.entry = ("Q", "Q", "HHQ8s") if big else ("I", "H", "HHI4s")
        file.seek(8 if big else 4)
        self.next = self._number(self.word)
        self.room = size

    def __iter__(self) -> Iterator[_Tags]:
        """One that reaches past the end ends them, as libtiff has it, but for the first."""
        yield self._tags(self._entries())
        while self.next:
            try:
                entries = self._entries()
            except (EOFError, struct.error):
                return
            yield self._tags(entries)

    def _entries(self) -> list[tuple[int, int, int, bytes]]:
        """Tag, type, count and value, or where it lies, of those of the next directory."""
        self._seek(self.next)
        count = self._number(self.count)
        length = count * struct.calcsize(self.order + self.entry)
        if self.next + length > self.size:
            raise EOFError(f"its directory at byte {self.next:,} claims {count:,} entries")
        self.room -= length + 2
        if self.room < 0:  # libtiff would go round, or look at each from the first on
            raise ValueError("its directories overlap or go in a circle")
        entries = list(struct.iter_unpack(self.order + self.entry, self.file.read(length)))
        self.next = self._number(self.word)
        return entries

    def _tags(self, entries: list[tuple[int, int, int, bytes]]) -> _Tags:
        tags: _Tags = {}
        for tag, kind, count, value in entries:
            length = count * _BYTES.get(kind, 0)
            if length > self.size:
                raise ValueError(f"tag {tag} claims {length:,} bytes, the file has {self.size:,}")
            if tag not in _USED or kind not in _WHOLE or not count or tag in tags:
                continue  # of two the first counts
            if length > len(value):
                self._seek(struct.unpack(self.order + self.word, value)[0])
                value = self.file.read(8)
            tags[tag] = struct.unpack_from(self.order + _WHOLE[kind], value)[0]
        return tags

    def _seek(self, at: int) -> None:
        if at >= self.size:
            raise EOFError(f"a directory points to byte {at:,}, the file has {self.size:,}")
        self.file.seek(at)

    def _number(self, form: str) -> int:
        form = self.order + form
        return struct.unpack(form, self.file.read(struct.calcsize(form)))[0]


def _claimed(page: _Tags, size: int) -> int:
    """The bytes that a page's numbers take in the file if they are not compressed."""
    sizes, tile = ([page.get(tag, 1) for tag in tags] for tags in (_PAGE, _TILE))
    samples, bits = page.get(_SAMPLES, 1), page.get(_BITS, 1)
    if not any(tag in page for tag in _TILE):
        rows = min(page.get(_ROWS, sizes[1]), sizes[1])
        tile = [sizes[0], rows, 1]  # strips
    if 0 in sizes or 0 in tile:
        raise ValueError("its pages, strips or tiles are empty")
    counts = [-(-n // m) for n, m in zip(sizes, tile, strict=True)]
    pieces = counts[0] * counts[1] * counts[2] * (samples if page.get(_PLANES) == 2 else 1)
    if pieces > size:
        raise ValueError(f"a page claims {pieces:,} strips or tiles, the file has {size:,} bytes")
    width, length, depth = (n * m for n, m in zip(counts, tile, strict=True))
    return -(-width * samples * bits // 8) * length * depth
