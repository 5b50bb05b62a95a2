"""Keeps freed memory in the process while a network trains on a CPU.

Activations are megabytes. The C library gives such blocks back to the system as soon as they are
freed, and takes them again page by page in the next step: up to half the time of a step's core.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# glibc's malloc.h. A setting ends the growth of its thresholds with the blocks that are freed; what
# is left behind is what they grow to at most.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_NEVER, _LARGEST, _MMAPS = 2**31 - 1, 32 * 2**20, 65536


@contextmanager
def kept_memory() -> Iterator[None]:
    """Freed memory stays in the process inside, and is given back afterwards.

    Settings of the whole process; where the C library is not glibc, nothing happens.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield
        return
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        library.mallopt(_MMAP_MAX, _MMAPS)
        library.mallopt(_MMAP_THRESHOLD, _LARGEST)
        library.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST)
        library.malloc_trim(0)
