"""Files that appear whole or not at all. Called by everything here that writes a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; on success it becomes `path`, on failure it is removed.

    Args:
        path: the file to appear; its folder must exist.

    Yields:
        A path in the same folder with the same ending, to be written to.

    Example:
        >>> from pathlib import Path
        >>> import tempfile
        >>> from diffreg._files import replacing
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(Path(folder) / "a.txt") as temporary:
        ...         _ = temporary.write_text("whole")
        ...     (Path(folder) / "a.txt").read_text()
        'whole'
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def require_folder(folder: str | Path, what: str) -> Path:
    """Refuse a folder that files cannot be written into, before any work is done for them.

    Args:
        folder: where the files are to appear.
        what: what the user calls it in the message, such as "the output folder".

    Returns:
        The folder.

    Raises:
        ValueError: it does not exist, is a file or is not writable.

    Example:
        >>> from diffreg._files import require_folder
        >>> require_folder("/", "the output folder").name
        ''
    """
    folder = Path(folder)
    if not folder.exists():
        raise ValueError(f"{what} {folder} does not exist")
    if not folder.is_dir():
        raise ValueError(f"{what} {folder} is a file, not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{what} {folder} is not writable")
    return folder
