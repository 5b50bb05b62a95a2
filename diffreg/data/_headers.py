"""MetaImage's and NRRD's headers, lines of text: what in them would do harm is refused.

ITK's libraries write past the end of what they hold of long lines and of many axes, print by a
pattern of the file's, and take memory for all numbers before they look for them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

# The end of a header, and the longest line in one. Values that anybody may add to NRRD,
# "key:=value", have any length, and so have MetaImage's rows of numbers up to that.
_HEAD, _END, _LINE, _NAME = 2**20, re.compile(rb"\r?\n\r?\n|ElementDataFile.*\n"), 500, 250
_BINARY = re.compile(rb"(?m)^BinaryData[ \t]*[=:][ \t]*([Tt]rue|TRUE|[Tt1])\s*$")
_AXES = re.compile(rb"NDims[ \t]*[=:][ \t]*([^\r\n]*)")
_NUMBERS = re.compile(rb"[^=:]*[=:][-+.eE0-9 \t]*")
_DATA = re.compile(rb"(?im)^(?:data ?file:|ElementDataFile *[=:])[ \t]*(.*?)\s*$")
# Names by numbers, as C prints them: from, to and step follow.
_PATTERN = re.compile(r"[^%]*%0?\d?d[^%]*( \d+){2} -?[1-9]\d*( \d)?")
# What C would take for a text's address, or write to, or make a long text of.
_HARMFUL = re.compile(r"%(?!%)([^%A-Za-z]*[hlLqjzt]*[nsSC]|[^%A-Za-z]*\d{3})|%\*")
_PACKED = re.compile(rb"(?im)^(encoding: *(gz|bz)|CompressedData *[=:] *[t1])")


class Header(NamedTuple):
    """What a header says of the numbers."""

    packed: bool
    files: list[Path]  # which hold them, or may


def check_header(path: Path, meta: bool) -> Header:
    """Refuse a header that would make ITK's libraries write or print where they must not.

    Args:
        path: the file.
        meta: whether it is MetaImage, else NRRD.

    Raises:
        ValueError: it would, the numbers are text, or their file is not there.
    """
    with path.open("rb") as file:
        content = file.read(_HEAD)
    end = _END.search(content)
    head, after = (content[: end.end()], content[end.end() :]) if end else (content, b"")
    lines = head.splitlines()
    longest = [_LINE if _NUMBERS.fullmatch(line) or not meta else _NAME for line in lines]
    lines = [line if meta or b":=" not in line else b"" for line in lines]
    endless = any(len(line) > n for line, n in zip(lines, longest, strict=True))
    if endless or b"\0" in head:
        raise ValueError(f"{path} is damaged or no such file: its header is not lines of text")
    if meta and not _BINARY.search(head):
        raise ValueError(f"{path} holds its numbers as text (BinaryData is not True): not read")
    for axes in _AXES.findall(head) if meta else ():
        if axes.strip() not in (b"2", b"3", b"4"):
            said = axes[:20].decode(errors="replace")
            raise ValueError(f"{path} is damaged or no such file: NDims must be 2 to 4, is {said}")
    return Header(_PACKED.search(head) is not None, _files(path, head, after))


def _files(path: Path, head: bytes, after: bytes) -> list[Path]:
    """The file itself, the one that a header names, those that it lists, or all in their folder."""
    found = list(_DATA.finditer(head))
    name = os.fsdecode(found[-1][1]) if found else "LOCAL"
    if name.upper() == "LOCAL":
        return [path]
    if re.fullmatch(r"LIST( \d[dD]?)?", name):
        listed = (head[found[-1].end() :] + after).split(b"\n")
        return [path.parent / os.fsdecode(line.strip()) for line in listed if line.strip()]
    if _PATTERN.fullmatch(name):
        return [file for file in (path.parent / name).parent.iterdir() if file.is_file()]
    if _HARMFUL.search(name) or not (path.parent / name).is_file():
        why = "a pattern, not read" if "%" in name else "there is none"
        raise ValueError(f"{path} names {name} as the file of its numbers: {why}")
    return [path.parent / name]
