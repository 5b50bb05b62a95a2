"""Files that appear whole or not at all, and folders that one process has for itself."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO

# What the system says where a disk, a quota or a file's allowed size is used up.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LONGEST = 255  # bytes of a file's name
_OF_MARK = 20  # of them before a temporary one, at most
TRIAL = "trial"  # of whether a folder can be written into
_ATTEMPTS = 10  # to lock a file before somebody removes it
PROCESSES = Path("/proc")  # of Linux
_ABANDONED = 86400.0  # seconds after which what another machine began to write is given up
# What `temporary_name` puts before a name: the process, where it runs, its RANK if it has one.
_MARK = re.compile(r"\.(?P<number>[0-9]+)-(?P<place>[0-9a-f]{8})-(?P<rest>.*)", re.DOTALL)


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
        >>> from diffreg.system.atomic import replacing
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(Path(folder) / "a.txt") as temporary:
        ...         _ = temporary.write_text("whole")
        ...     (Path(folder) / "a.txt").read_text()
        'whole'
    """
    path = Path(path)
    temporary = path.with_name(temporary_name(path.name))
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
            elif rest.startswith(TRIAL):
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
        >>> from diffreg.system.atomic import staged
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with staged(Path(folder) / "out") as temporary:
        ...         _ = (temporary / "a.txt").write_text("whole")
        ...     (Path(folder) / "out" / "a.txt").read_text()
        'whole'
    """
    out = Path(out)
    there = out.exists()
    folder = (out if there else out.absolute().parent) / temporary_name(out.name)
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


def temporary_name(name: str) -> str:
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
    for attempt in range(_ATTEMPTS):
        with path.open("w") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    raise ValueError(refusal) from None
            # Who was inside may have removed it between opening and locking; a disk that never says
            # of a file that it is itself has no locks to rely on.
            if not _is_still(path, file) and attempt < _ATTEMPTS - 1:
                continue
            try:
                yield
            finally:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
            return


def _is_still(path: Path, file: IO[str]) -> bool:
    """Whether an open file is what has the name now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False
