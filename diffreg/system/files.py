"""Text files, and what is said of files and folders before any work is done with them."""

from __future__ import annotations

import codecs
import errno
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from diffreg.system.atomic import TRIAL, temporary_name


class FileWarning(UserWarning):
    """What a user has to know of a file that is read all the same; the command line prints it."""


def read_text(path: str | Path) -> str:
    """The text of a file as spreadsheets and editors write it, without its byte order mark.

    Args:
        path: a file in UTF-8, or in UTF-16, which spreadsheets call Unicode text.

    Returns:
        The text, line ends as they are.

    Raises:
        UnicodeDecodeError: it is neither.

    Example:
        >>> from pathlib import Path
        >>> import tempfile
        >>> from diffreg.system.files import read_text
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "a.csv").write_text("i;j", encoding="utf-16")
        ...     read_text(Path(folder) / "a.csv")
        'i;j'
    """
    content = Path(path).read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    if b"\0" in content[:2]:  # the first letter is ASCII in every file that is read here
        return content.decode("utf-16-le" if content[1:2] == b"\0" else "utf-16-be")
    return content.decode("utf-8-sig")


def require_folder(folder: str | Path, what: str) -> Path:
    """Refuse a folder that files cannot be written into, before any work is done for them.

    What the system says of rights does not hold for everyone and on every disk: a folder is made in
    it, and removed.

    Args:
        folder: where the files are to appear.
        what: what the user calls it in the message, such as "the output folder".

    Returns:
        The folder.

    Raises:
        ValueError: it does not exist, is a file or is not writable.

    Example:
        >>> from diffreg.system.files import require_folder
        >>> require_folder("/", "the output folder").name
        ''
    """
    folder = Path(folder)
    if not folder.exists():
        raise ValueError(f"{what} {folder} does not exist")
    if not folder.is_dir():
        raise ValueError(f"{what} {folder} is a file, not a folder")
    try:
        os.rmdir(tempfile.mkdtemp(prefix=temporary_name(TRIAL), dir=folder))
    except OSError as error:
        known = errno.EACCES, errno.ENOENT  # the second is that of /proc
        reason = "" if error.errno in known else f": {str(error.strerror).lower()}"
        raise ValueError(f"{what} {folder} is not writable{reason}") from None
    return folder


def require_output(out: str | Path, read: Iterable[str | Path | None]) -> Path:
    """Refuse a file that could not be written, or that is read for it, before any work is done.

    Args:
        out: the file to appear.
        read: the files that it is made of, and None for those that nobody gave.

    Returns:
        The file.

    Raises:
        ValueError: its folder is no folder that can be written to, or it is one of those.

    Example:
        >>> from diffreg.system.files import require_output
        >>> require_output("/new.nii.gz", ["/old.nii.gz", None]).name
        'new.nii.gz'
    """
    out = Path(out)
    require_folder(out.absolute().parent, "the output's folder")
    for path in read:
        if path is not None and out.exists() and Path(path).exists() and out.samefile(path):
            raise ValueError(f"{out} is what is read; the output needs another name")
    return out


def require_place(folder: str | Path, what: str) -> Path:
    """Refuse a folder that may not exist, nor its parents, and that could not be made.

    Args:
        folder: where the files are to appear.
        what: what the user calls it in the message, such as "the output folder".

    Returns:
        The folder.

    Raises:
        ValueError: it, or the first of its parents that exists, is a file or is not writable; or it
            is a link to nowhere.

    Example:
        >>> from diffreg.system.files import require_place
        >>> require_place("/", "the output folder").name
        ''
    """
    folder = Path(folder)
    above = [folder, *folder.absolute().parents]
    there = next(path for path in above if path.is_symlink() or path.exists())
    if not there.exists():
        raise ValueError(f"{what} {there} is a link to {os.readlink(there)}, which does not exist")
    require_folder(there, what)
    return folder
