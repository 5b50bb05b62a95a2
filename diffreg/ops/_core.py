"""Loads the compiled libraries, which register torch.ops.diffreg.*.

diffreg._C comes first: it knows which CPU variants this processor runs. The fastest of them is then
loaded, or the one that DIFFREG_CPU names. All give the same bits.
"""

import ctypes
from pathlib import Path

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
    info = _built() | {"cpu_variant": CPU_VARIANT}
    del info["path"]
    return info


def _built() -> dict[str, str]:
    """What diffreg._C says, once it fits; its CPU variant is the one to load."""
    try:
        from diffreg import _C  # type: ignore[attr-defined]
    except ImportError as error:
        raise _misfit(error) from None
    info = _C.build_info()
    if info["version"] != __version__:
        raise ImportError(
            f"diffreg's compiled core is of version {info['version']}, the package of version "
            f"{__version__}; {REBUILD}"
        )
    return info | {"path": _C.__file__}


def _misfit(error: Exception) -> ImportError:
    return ImportError(
        f"diffreg's compiled core does not load under torch {torch.__version__} ({error}); "
        + REBUILD
    )


def _load_cpu_variant() -> str:
    """Registers the CPU operators; the variant, from the library's own mouth."""
    info = _built()
    wanted, running = info["cpu_variant"], info.get("cpu_variants", "").split()
    if running and wanted not in running:
        raise ImportError(
            f"DIFFREG_CPU must be one of {', '.join(running)} on this processor, got {wanted}"
        )
    try:
        library = ctypes.CDLL(str(Path(info["path"]).parent / f"_cpu_{wanted}.so"))
    except OSError as error:
        raise _misfit(error) from None
    library.diffreg_cpu_variant.restype = ctypes.c_char_p
    return library.diffreg_cpu_variant().decode()


CPU_VARIANT = _load_cpu_variant()
