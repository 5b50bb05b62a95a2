"""A DICOM file's data elements, walked by their lengths: none may reach past the end of the file.

GDCM takes the memory that a length asks for before it reads, and where a file is not what its
transfer syntax says, it guesses and takes other bytes for lengths. What ends even here it reads as
it stands.

Source: DICOM PS3.10 section 7.1, the file; PS3.5 sections 7.1 and 7.5, elements and sequences, and
A.4, pixels in fragments. https://www.dicomstandard.org/current
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

from diffreg.data._codestream import claimed
from diffreg.data._limits import LARGEST

_UNDEFINED = 0xFFFFFFFF  # length of what ends with a mark
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXELS, _SYNTAX, _SERIES = 0x7FE00010, 0x00020010, 0x0020000E
# Value representations whose length has 32 bits, and those of 16 bits.
_LONG = ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV")
_SHORT = (
    *("AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "PN", "SH", "SL"),
    *("SS", "ST", "TM", "UI", "UL", "US"),
)
_IMPLICIT = ("1.2.840.10008.1.2", "1.2.840.113619.5.2")  # the second is GE's own
_BIG_ENDIAN, _DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
_UNPACKED = (*_IMPLICIT, _BIG_ENDIAN, "1.2.840.10008.1.2.1")
_DEEPEST = 50  # sequences in sequences; a report has ten, GDCM's stack holds some thousands


class Elements(NamedTuple):
    """What a walk has found."""

    series: str  # UID, "" where there is none
    has_pixels: bool
    packed: bool  # whether its pixels are compressed
    claimed: int  # numbers that one of its compressed pictures claims to hold


def is_dicom(path: Path) -> bool:
    """Whether a file says that it is DICOM."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def walk(path: Path) -> Elements:
    """Check the lengths of all data elements of a file.

    Raises:
        ValueError: it is not DICOM, an element reaches past the end of the file or of the sequence
            that it is in, or they are not such as the transfer syntax says.
    """
    try:
        if not is_dicom(path):
            raise ValueError("it does not say DICM")
        with path.open("rb") as file:
            return _walked(file, path.stat().st_size)
    except (ValueError, EOFError, struct.error, zlib.error) as error:
        cut = isinstance(error, EOFError | struct.error)
        reason = "it ends within an element" if cut else error
        raise ValueError(f"{path} is damaged or no such file: {reason}") from error


def _walked(file: BinaryIO, size: int) -> Elements:
    file.seek(132)
    head = _Walk(file, size)
    head.meta()
    if _SYNTAX not in head.found:
        raise ValueError("it does not say its transfer syntax")
    syntax = head.found[_SYNTAX]
    if syntax == _DEFLATED:
        file, size = _inflated(file)
    body = _Walk(file, size, ">" if syntax == _BIG_ENDIAN else "<")
    body.elements(size, explicit=syntax not in _IMPLICIT)
    has_pixels, packed = _PIXELS in body.found, syntax not in _UNPACKED
    return Elements(body.found.get(_SERIES, ""), has_pixels, packed, body.claimed)


def _inflated(file: BinaryIO) -> tuple[BinaryIO, int]:
    """What follows in a file, inflated, and its size; no more than the largest image takes."""
    content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(), 2 * LARGEST)
    return io.BytesIO(content), len(content)


class _Walk:
    """A place in a file, and what was found on the way.

    Attributes:
        tag: of the last element, group and number.
        found: of the elements that lie in no sequence, the values of some.
        claimed: as `Elements` has it.
    """

    def __init__(self, file: BinaryIO, size: int, order: str = "<") -> None:
        self.file, self.size, self.order = file, size, order
        self.tag = 0
        self.found: dict[int, str] = {}
        self.claimed = 0

    def elements(self, end: int, explicit: bool, depth: int = 0, marked: bool = False) -> None:
        """Data elements up to a byte, or up to an item's end mark."""
        while self.file.tell() + 8 <= end:
            if not depth and self._ends_in_zeros():
                return
            self._element(end, explicit, depth)
            if marked and self.tag == _ITEM_END:
                return
        if not depth and self.file.tell() + 4 <= end:
            raise EOFError  # a tag, after which GDCM would guess
        if depth and (marked or self.file.tell() != end):
            raise ValueError(f"an item's data elements do not end by byte {end:,}, as it does")

    def meta(self) -> None:
        """The elements of group 2, which say how the others are written."""
        while self.file.tell() + 8 <= self.size:
            (group,) = self._numbers("H")
            self.file.seek(-2, 1)
            if group != 2:
                return
            self._element(self.size, explicit=True, depth=0)

    def _element(self, end: int, explicit: bool, depth: int) -> None:
        at = self.file.tell()
        high, low = self._numbers("HH")
        self.tag = high << 16 | low
        name = f"its data element {_name(self.tag)} at byte {at:,}"
        if high == 0xFFFE:
            self.file.seek(4, 1)
            if self.tag != _ITEM_END or not depth:
                raise ValueError(f"{name} stands outside of a sequence")
            return
        kind = self.file.read(2).decode("latin-1") if explicit else ""
        if explicit and kind not in (*_LONG, *_SHORT):
            raise ValueError(
                f"{name} has no value representation, as its transfer syntax asks for; write the "
                "file anew, as by gdcmconv"
            )
        length = self._length(kind)
        if length != _UNDEFINED and self.file.tell() + length > end:
            left = max(end - self.file.tell(), 0)
            raise ValueError(f"{name} claims {length:,} bytes, {left:,} are left")
        if high == 2 and (kind == "SQ" or length == _UNDEFINED):
            raise ValueError(f"{name} is a sequence, of which the file's head has none")
        self._value(kind, length, end, explicit, depth)

    def _length(self, kind: str) -> int:
        """Of a value; GDCM mends two companies' faults, but in every file."""
        if kind in _SHORT:
            (length,) = self._numbers("H")
            return 4 if (self.tag >> 16, kind, length) == (9, "UL", 6) else length
        if kind:
            return self._numbers("HI")[1]
        (length,) = self._numbers("I")
        return 10 if length == 13 and self.tag not in (0x00080070, 0x00080080) else length

    def _value(self, kind: str, length: int, end: int, explicit: bool, depth: int) -> None:
        tag = self.tag
        if not depth and tag in (_PIXELS, _SYNTAX, _SERIES):
            self.found[tag] = ""
        if length == _UNDEFINED and tag == _PIXELS:
            self._fragments()
        elif length == _UNDEFINED:  # other than SQ it is of implicit representation
            self._items(end, explicit and kind == "SQ", depth + 1, marked=True)
        elif kind == "SQ":
            self._items(self.file.tell() + length, explicit, depth + 1)
        elif tag in (_SYNTAX, _SERIES) and not depth:
            self.found[tag] = self.file.read(length).decode("latin-1").strip("\0 ")
        else:
            self.file.seek(length, 1)
        self.tag = tag

    def _items(self, end: int, explicit: bool, depth: int, marked: bool = False) -> None:
        """A sequence's items, up to its end mark or a byte."""
        if depth > _DEEPEST:
            raise ValueError(f"its sequences lie in each other, more than {_DEEPEST} deep")
        while self.file.tell() < end:
            tag, length = self._item()
            if tag == _SEQUENCE_END:
                return
            last = end if length == _UNDEFINED else self.file.tell() + length
            if tag != _ITEM or last > end:
                at = self.file.tell() - 8
                raise ValueError(f"{_name(tag)} at byte {at:,} is no item within its sequence")
            self.elements(last, explicit, depth, marked=length == _UNDEFINED)
        if marked:
            raise ValueError(f"a sequence has no end mark by byte {end:,}")

    def _fragments(self) -> None:
        """Compressed pixels, in pieces."""
        while self.file.tell() + 8 <= self.size:
            tag, length = self._item()
            if tag == _SEQUENCE_END:
                return
            if tag != _ITEM or self.file.tell() + length > self.size:
                raise ValueError(f"its pixels end early: {_name(tag)} claims {length:,} bytes")
            content = self.file.read(length)
            self.claimed = max(self.claimed, claimed(content, self.size))

    def _ends_in_zeros(self) -> bool:
        """Whether nothing but zeros follows, with which some fill up a file."""
        at = self.file.tell()
        zeros = self._numbers("I") == (0,)
        while zeros and (content := self.file.read(2**16)):
            zeros = not content.strip(b"\0")
        self.file.seek(at)
        return zeros

    def _item(self) -> tuple[int, int]:
        high, low, length = self._numbers("HHI")
        return high << 16 | low, length

    def _numbers(self, form: str) -> tuple[int, ...]:
        form = self.order + form
        return struct.unpack(form, self.file.read(struct.calcsize(form)))


def _name(tag: int) -> str:
    return f"({tag >> 16:04x},{tag & 0xFFFF:04x})"
