"""What a compressed picture within a file says of itself: decoders take memory for all of it.

Source: ITU-T T.81 annex B (JPEG), T.87 annex C (JPEG-LS), T.800 annex A (JPEG 2000).
"""

from __future__ import annotations

import struct

_JPEG, _JPEG_2000 = b"\xff\xd8", b"\xff\x4f\xff\x51"
# Markers of a frame's header, which has the size; of T.81 all that are not DHT, JPG and DAC.
_FRAMES = (*(m for m in range(0xC0, 0xD0) if m not in (0xC4, 0xC8, 0xCC)), 0xF7)
_BOXES = 4096  # bytes that may come before a picture of JPEG 2000
_TILE = 14  # bytes of a tile's header, of which a decoder makes some thousands
_CHANNELS = 4  # red, green, blue and opacity


def claimed(content: bytes, size: int) -> int:
    """The numbers that a JPEG, JPEG-LS or JPEG 2000 picture claims to hold, 0 of other content.

    Args:
        content: a piece of compressed pixels; a picture begins in it or does not.
        size: bytes of all its pieces, at most.

    Raises:
        ValueError: a picture begins and does not say its size, or has more tiles than bytes for
            them.
    """
    try:
        if content.startswith(_JPEG):
            return _of_jpeg(content)
        return _of_jpeg_2000(content, size) if _JPEG_2000 in content[:_BOXES] else 0
    except (struct.error, IndexError):
        raise ValueError("its compressed pixels begin without a size") from None


def _of_jpeg(content: bytes) -> int:
    at = 2
    while True:
        mark, kind, length = struct.unpack_from(">BBH", content, at)
        if mark != 0xFF:
            raise IndexError
        if kind in _FRAMES:
            height, width, channels = struct.unpack_from(">HHB", content, at + 5)
            return height * width * channels
        at += 1 if kind == 0xFF else 2 + length  # what fills up, or a segment


def _of_jpeg_2000(content: bytes, size: int) -> int:
    *sides, channels = struct.unpack_from(">8IH", content, content.index(_JPEG_2000) + 8)
    right, bottom, left, top, width, height, first, upper = sides
    if not width or not height or left >= right or top >= bottom or channels > _CHANNELS:
        raise IndexError
    tiles = -(-(right - first) // width) * -(-(bottom - upper) // height)
    if tiles * _TILE > size:
        raise ValueError(f"its compressed pixels claim {tiles:,} tiles in {size:,} bytes")
    return (right - left) * (bottom - top) * channels
