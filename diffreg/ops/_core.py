"""Loads the compiled libraries, which register torch.ops.diffreg.*.

diffreg._C comes first: it knows which CPU variants this processor runs. The fastest of them is then
loaded, or the one that DIFFREG_CPU names. All give the same bits.
"""

import ctypes
import os
from pathlib import Path
from typing import Any

import torch

from diffreg import __version__

REBUILD = (
    "run: pip install --no-build-isolation --force-reinstall --no-deps . (in the source folder)"
)


def build_info() -> dict[str, str]:
    """What the compiled libraries were built from and for.

    Returns:
        Version, torch at build time, oldest torch at run time, compiler, CUDA architectures
        ("80 90 ptx90", or "none"), CUDA runtime ("13.0", or "none"); the CPU variant that is
        loaded, and those that run here.

    Raises:
        ImportError: a library is missing, or does not fit this package or this torch.
    """
    info = dict(_module().build_info())
    if info["version"] != __version__:
        raise ImportError(
            f"diffreg's compiled core is of version {info['version']}, the package of version "
            f"{__version__}; {REBUILD}"
        )
    return info | {"cpu_variant": CPU_VARIANT, "cpu_variants": " ".join(_module().cpu_variants())}


def _module() -> Any:
    try:
        from diffreg import _C  # type: ignore[attr-defined]
    except ImportError as error:
        raise ImportError(
            f"diffreg's compiled core does not load under torch {torch.__version__} ({error}); "
            + REBUILD
        ) from None
    return _C


def _load_cpu_variant() -> str:
    """Registers the CPU operators; the variant, from the library's own mouth."""
    running = _module().cpu_variants()
    wanted = os.environ.get("DIFFREG_CPU") or running[-1]
    if wanted not in running:
        raise ImportError(
            f"DIFFREG_CPU must be one of {', '.join(running)} on this processor, got {wanted}"
        )
    path = Path(_module().__file__).parent / f"_cpu_{wanted}.so"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise ImportError(
            f"diffreg's compiled core does not load under torch {torch.__version__} ({error}); "
            + REBUILD
        ) from None
    library.diffreg_cpu_variant.restype = ctypes.c_char_p
    return library.diffreg_cpu_variant().decode()


CPU_VARIANT = _load_cpu_variant()
build_info()
