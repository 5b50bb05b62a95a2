"""Objects as JSON files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from diffreg.system.atomic import replacing


def read_json(path: Path) -> dict[str, Any]:
    """An object that `write_json` wrote.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold an object, {{...}}")
    return found


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write an object as JSON, whole or not at all; null for numbers that JSON does not have."""
    with replacing(path) as temporary:
        text = json.dumps(_finite(values), indent=2, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
