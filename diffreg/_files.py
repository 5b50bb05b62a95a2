"""Files that appear whole or not at all; text files, and what is said of files that are read."""

from __future__ import annotations

import codecs
import errno
import hashlib
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

# What the system says where a disk, a quota or a file's allowed size is used up.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LONGEST = 255  # bytes of a file's name
_OF_MARK = 20  # of them before a temporary one, at most
_TRIAL = "trial"  # of whether a folder can be written into
PROCESSES = Path("/proc")  # of Linux
_ABANDONED = 86400.0  # seconds after which what another machine began to write is given up
# What `_temporary` puts before a name: the process, where it runs, its RANK if it has one.
_MARK = re.compile(r"\.(?P<number>[0-9]+)-(?P<place>[0-9a-f]{8})-(?P<rest>.*)", re.DOTALL)


class FileWarning(UserWarning):
    """What a user has to know of a file that is read all the same; the command line prints it."""


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
    temporary = path.with_name(_temporary(path.name))
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:  # told with the name that the user knows
        named = error.filename
        if error.errno in FULL if named is None else os.fspath(named) == str(temporary):
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):  # a disk that fails says so above
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: str | Path) -> None:
    """Remove what `replacing` left when its process was killed in the middle of a file.

    Args:
        folder: looked into, not below; files of processes that are alive stay, and all of them
            where the system does not list its processes. Those of other machines and containers,
            whose processes nobody sees here, stay for a day.
    """
    for path, rest in _of_the_dead(Path(folder)):
        with suppress(OSError):  # another process may have been faster
            if not path.is_dir():
                path.unlink(missing_ok=True)
            elif rest.startswith(_TRIAL):
                path.rmdir()


def _of_the_dead(folder: Path, own: str = "") -> Iterator[tuple[Path, str]]:
    """Hidden names of processes that are not alive, each with what follows process and place.

    Args:
        folder: looked into, not below.
        own: what follows in names that are this process's alone, wherever it ran before.
    """
    for path in folder.glob(".[0-9]*-*"):
        found = _MARK.fullmatch(path.name)
        if found is None:
            continue
        if found["place"] == _place():
            dead = PROCESSES.is_dir() and not (PROCESSES / found["number"]).exists()
        else:
            dead = found["rest"] == own or _age(path) > _ABANDONED
        if dead:
            yield path, found["rest"]


def _age(path: Path) -> float:
    """Seconds since something was written; 0 where that cannot be seen."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


@contextmanager
def staged(out: str | Path, last: str = "") -> Iterator[Path]:
    """Give a temporary folder for files that belong together; on success all of them go into `out`.

    They move within an instant, `last` after all others; on failure none does, and a folder that
    did not exist is not made.

    Args:
        out: the folder for the files; its parent must exist.
        last: the file whose presence says that the others are there.

    Yields:
        An empty folder on the same disk.

    Example:
        >>> from pathlib import Path
        >>> import tempfile
        >>> from diffreg._files import staged
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with staged(Path(folder) / "out") as temporary:
        ...         _ = (temporary / "a.txt").write_text("whole")
        ...     (Path(folder) / "out" / "a.txt").read_text()
        'whole'
    """
    out = Path(out)
    there = out.exists()
    folder = (out if there else out.absolute().parent) / _temporary(out.name)
    shutil.rmtree(folder, ignore_errors=True)  # of a process of that number, which was killed
    # And of others that were to make the same; of another machine only where they had this RANK.
    same = _MARK.fullmatch(folder.name)["rest"]  # type: ignore[index]
    for path, rest in _of_the_dead(folder.parent, same if _rank() else ""):
        if rest == same:
            shutil.rmtree(path, ignore_errors=True)
    try:
        folder.mkdir()
        yield folder
        if there:
            for file in sorted(folder.iterdir(), key=lambda path: path.name == last):
                os.replace(file, out / file.name)
        else:
            _appear(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _appear(folder: Path, out: Path) -> None:
    """A folder takes its name, unless another process, of another pair perhaps, has filled it."""
    try:
        os.rename(folder, out)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise ValueError(
            f"another process wrote into {out} meanwhile: its files stay, this one's are dropped"
        ) from None


def _temporary(name: str) -> str:
    """A hidden name of this process with the same ending, as long as names may be."""
    rank = _rank()
    rest = f"{rank}-{name}" if rank else name
    while len(os.fsencode(rest)) > _LONGEST - _OF_MARK:  # the same whatever the process's number
        name = name[1:]
        rest = f"{rank}-{name}" if rank else name
    return f".{os.getpid()}-{_place()}-{rest}"


def _rank() -> str:
    """RANK, in the names of several processes that share a folder; "" of one alone."""
    rank = os.environ.get("RANK", "")
    return rank if rank.isdigit() else ""


@cache
def _place() -> str:
    """Eight letters for where a process has its number: this machine, since it was started, and
    this container. In another one there may be a process of the same number, or none."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append((PROCESSES / "sys/kernel/random/boot_id").read_text())
    with suppress(OSError):
        parts.append(os.readlink(PROCESSES / "self/ns/pid"))
    return hashlib.sha256(" ".join(parts).encode(errors="replace")).hexdigest()[:8]


@contextmanager
def alone_in(folder: str | Path, refusal: str) -> Iterator[None]:
    """No other process is inside with the same folder, on this machine or, as far as a network disk
    has locks, on another; one that was killed is none.

    Args:
        folder: it must exist, and be writable.
        refusal: what is said where there is one.

    Raises:
        ValueError: there is one.

    Example: `with alone_in("run", "run is in use"): ...`
    """
    try:
        import fcntl
    except ImportError:  # of another system
        yield
        return
    path = Path(folder) / ".lock"
    with path.open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise ValueError(refusal) from None
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink(missing_ok=True)


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
        >>> from diffreg._files import read_text
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
        >>> from diffreg._files import require_folder
        >>> require_folder("/", "the output folder").name
        ''
    """
    folder = Path(folder)
    if not folder.exists():
        raise ValueError(f"{what} {folder} does not exist")
    if not folder.is_dir():
        raise ValueError(f"{what} {folder} is a file, not a folder")
    try:
        os.rmdir(tempfile.mkdtemp(prefix=_temporary(_TRIAL), dir=folder))
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
        >>> from diffreg._files import require_output
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
        >>> from diffreg._files import require_place
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
