"""What is odd about a file that is read all the same: one line on stderr, once a command."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffreg.system.files import FileWarning


@contextmanager
def warning_in_lines() -> Iterator[None]:
    """Warnings about files become lines on stderr; those of libraries stay as they are."""
    said: set[str] = set()
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Any, category: type[Warning], *place: Any) -> None:
            if not issubclass(category, FileWarning):
                return others(message, category, *place)
            line = " ".join(str(message).split())
            if line not in said:
                said.add(line)
                print(f"diffreg: warning: {line}", file=sys.stderr)

        warnings.showwarning = show  # type: ignore[assignment]
        warnings.simplefilter("always", FileWarning)
        yield
