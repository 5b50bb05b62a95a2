"""What the C library does with freed memory: keep it, or give it back; and the most that was held.

While a network trains, blocks of megabytes come and go at every step, and to take them again page
by page is up to half the time of a step. A registration of volumes takes and frees blocks of many
sizes: kept, they break the memory up, and the process grows to twice what it holds.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# glibc's malloc.h. A setting ends the growth of its thresholds with the blocks that are freed; what
# is left behind is what they grow to at most.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_NEVER, _LARGEST, _MMAPS = 2**31 - 1, 32 * 2**20, 65536
_OWN_GROUPS, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# Bytes: larger blocks go back to the system as soon as they are freed. Fields of heads at 2 mm are
# kept: to take their pages again and again was a twentieth of a registration's time.
_RETURNED = 8 * 2**20


@contextmanager
def kept_memory() -> Iterator[None]:
    """Freed memory stays in the process inside, and is given back afterwards.

    Settings of the whole process; where the C library is not glibc, nothing happens.
    """
    library = _glibc()
    if library is None:
        yield
        return
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        library.mallopt(_MMAP_MAX, _MMAPS)
        _as_usual(library)
        library.malloc_trim(0)


@contextmanager
def returned_memory(least: int = _RETURNED) -> Iterator[None]:
    """Freed blocks of some megabytes go back to the system at once inside.

    Settings of the whole process; where the C library is not glibc, nothing happens.

    Args:
        least: bytes of such a block.
    """
    library = _glibc()
    if library is None:
        yield
        return
    library.malloc_trim(0)
    library.mallopt(_MMAP_THRESHOLD, least)
    try:
        yield
    finally:
        _as_usual(library)
        library.malloc_trim(0)


def peak_memory() -> float:
    """MiB that this process has held at most; NaN where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return math.nan
    return next((int(line.split()[1]) / 1024 for line in lines if line[:6] == "VmHWM:"), math.nan)


def memory_limit(own: Path = _OWN_GROUPS, groups: Path = _GROUPS) -> float:
    """Bytes that this process may hold: what the machine has, or less where its control group, a
    container's or a cluster job's, may have less; infinite where the system does not say.

    Args:
        own: the file that says which groups the process is in.
        groups: where the file system of control groups, version 1 or 2, is mounted.
    """
    try:
        machine = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        machine = math.inf
    return min(machine, *_group_limits(own, groups))


def _group_limits(own: Path, groups: Path) -> Iterator[float]:
    """Of the process's groups and those that these are in."""
    yield math.inf
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, group = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        top = groups / "memory" if kinds else groups
        name = "memory.limit_in_bytes" if kinds else "memory.max"
        folder = Path(group)
        # Within a container the group may have the host's name, and lie at the top.
        for inner in (folder, *folder.parents):
            try:
                yield float((top / inner.relative_to("/") / name).read_text())
            except (OSError, ValueError):  # "max", or no such group here
                continue


def _as_usual(library: Any) -> None:
    library.mallopt(_MMAP_THRESHOLD, _LARGEST)
    library.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST)


def _glibc() -> Any:
    """The C library, None where it is not glibc."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    has = library is not None and hasattr(library, "mallopt") and hasattr(library, "malloc_trim")
    return library if has else None
