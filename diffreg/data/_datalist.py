"""The rows of a MONAI datalist: {"training": [{"image": ..., "label": ...}], "validation": [...]}.

What else its dicts hold, such as the number of a fold, is left alone.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffreg.data._manifest_rows import IMAGE_COLUMNS, NEAR, PAIR_COLUMNS, check_columns
from diffreg.system.files import read_text

USUAL = "training"
_ALSO = {f"{side}_image": side for side in ("moving", "fixed")}


def datalist_rows(path: Path, section: str) -> dict[str, dict[str, Any]]:
    """Row name -> {column: value} of one of the file's lists.

    Args:
        path: a JSON file.
        section: which list; "": "training".

    Raises:
        ValueError: no JSON, no such list, or an entry that is neither a pair nor an image.
    """
    section = section or USUAL
    entries = _list(path, section)
    rows = {}
    for number, entry in enumerate(entries, start=1):
        row = f"{path}:{section}, entry {number}"
        entry = {"image": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, Mapping):
            raise ValueError(f"{row}: must be a path or an object, got {type(entry).__name__}")
        rows[row] = _columns(entry, row)
    of_images = "image" in next(iter(rows.values()), {})
    for row, values in rows.items():
        check_columns(list(values), row, images=of_images)
    return rows


def _list(path: Path, section: str) -> list[Any]:
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    lists = content if isinstance(content, Mapping) else {}
    found = lists.get(section)
    if isinstance(found, list):
        return found
    names = ", ".join(key for key, value in lists.items() if isinstance(value, list))
    raise ValueError(
        f"{path} has no list {section!r}; "
        + (f"it has {names}: {path.name}:NAME takes one of them" if names else "it has no list")
    )


def _columns(entry: Mapping[str, Any], row: str) -> dict[str, Any]:
    """What an entry has of a manifest's columns, by their names there."""
    known = dict.fromkeys([*PAIR_COLUMNS, *IMAGE_COLUMNS, *_ALSO])
    values = {}
    for key, value in entry.items():
        name = _ALSO.get(key, key)
        close = difflib.get_close_matches(key, list(known), n=1, cutoff=NEAR)
        if name in values:
            raise ValueError(f"{row}: {name} is there twice")
        if key in known:
            values[name] = value
        elif close and not key[-1].isdigit():  # image2 is no slip of the pen
            raise ValueError(f"{row}: there is no key {key!r}; the nearest is {close[0]}")
    if not {"image", "moving", "fixed"} & set(values):
        raise ValueError(f"{row}: it must have image, or moving and fixed; it has {[*entry]}")
    return values
