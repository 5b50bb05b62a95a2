"""Where an error came from: the user's own code, or a library's."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path


def place_of(error: BaseException) -> str:
    """The user's file and line that an error went through last, as " (FILE, line N)"; "": none.

    Example:
        >>> from diffreg._own_code import place_of
        >>> place_of(ValueError("raised by nobody"))
        ''
    """
    others = [Path(__file__).parent, *map(Path, sysconfig.get_paths().values())]
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        file = Path(frame.f_code.co_filename)
        if file.is_file() and not any(file.is_relative_to(folder) for folder in others):
            return f" ({file}, line {line})"
    return ""
