"""Loads the compiled libraries, which register torch.ops.diffreg.*, or says that there are none.

diffreg/_core.so comes first: it knows which CPU variants this processor runs. The fastest of them
is then loaded, or the one that DIFFREG_CPU names. All give the same bits. Where no core was built,
or with DIFFREG_CPU=none, the same schemas are registered here and the operators are _plain's.
"""

import ast
import ctypes
import os
import warnings
from pathlib import Path

import torch

from diffreg import __version__

PACKAGE = Path(__file__).parents[1]
LIBRARY = PACKAGE / "_core.so"
PLAIN = "none, plain PyTorch"  # the CPU variant of no compiled core
REBUILD = (
    "run: pip install --no-build-isolation --force-reinstall --no-deps . (in the source folder)"
)
SLOW = (
    "diffreg has no compiled core here: its operators run in plain PyTorch, 14 to 140 times slower "
    "on a CPU. On x86-64 Linux a core is built by: pip install --no-build-isolation . (in the "
    "source folder; docs/install.md says more)"
)


def build_info() -> dict[str, str]:
    """What the compiled libraries were built from and for.

    Returns:
        Version, torch at build time, oldest torch at run time, compiler, CUDA architectures
        ("80 90 ptx90", or "none"), CUDA runtime ("13.0", or "none"); the CPU variant that is
        loaded, and those that run here. Without a core "no compiled core" stands for the compiler,
        and for the variant "none, plain PyTorch".

    Raises:
        ImportError: a library is missing, or does not fit this package or this torch.
    """
    return (_built() if HAS_CORE else _not_built()) | {"cpu_variant": CPU_VARIANT}


def _not_built() -> dict[str, str]:
    none = ("torch", "oldest_torch", "cpu_variants", "cuda_architectures", "cuda_runtime")
    return {"version": __version__, "compiler": "no compiled core", **dict.fromkeys(none, "none")}


def _built() -> dict[str, str]:
    """What diffreg/_core.so says, once it fits; its CPU variant is the one to load."""
    library = _loaded(LIBRARY)
    library.diffreg_build_info.restype = ctypes.c_char_p
    lines = library.diffreg_build_info().decode().splitlines()
    info = dict(line.split("=", 1) for line in lines)
    if info["version"] != __version__:
        raise ImportError(
            f"diffreg's compiled core is of version {info['version']}, the package of version "
            f"{__version__}; {REBUILD}"
        )
    return info


def _loaded(path: Path) -> ctypes.CDLL:
    try:
        torch.ops.load_library(path)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise ImportError(
            f"diffreg's compiled core does not load under torch {torch.__version__} "
            f"({error.__cause__ or error}); {REBUILD}"
        ) from None


def what_torch_said() -> str:
    """Why torch refused what an operator of the core last asked of it in this thread.

    Empty where torch does not keep it (before 2.13).
    """
    said = getattr(ctypes.CDLL(str(LIBRARY)), "torch_exception_get_what_without_backtrace", None)
    if said is None:
        return ""
    said.restype = ctypes.c_char_p
    return said().decode(errors="replace")


def _load_cpu_variant() -> str:
    """Registers the CPU operators; the variant, from the library's own mouth."""
    info = _built()
    wanted, running = info["cpu_variant"], info["cpu_variants"].split()
    if wanted not in running:
        raise ImportError(
            f"DIFFREG_CPU must be one of {', '.join(running)} on this processor, or none, got "
            f"{wanted}"
        )
    library = _loaded(PACKAGE / f"_cpu_{wanted}.so")
    library.diffreg_cpu_variant.restype = ctypes.c_char_p
    return library.diffreg_cpu_variant().decode()


def _define_schemas() -> torch.library.Library:
    """Those of the core, which compiles the same file (csrc/common/variant_cpu.cpp)."""
    library = torch.library.Library("diffreg", "FRAGMENT")
    schemas = Path(__file__).with_name("schemas.inc").read_text(encoding="utf-8")
    for schema in ast.literal_eval(f"[{schemas}]"):
        library.define(schema)
    return library


def _one_thread() -> None:
    """In a process that was forked, such as one of multiprocessing.Pool: torch's other threads are
    not there, and who wakes them waits for ever. torch's DataLoader does so in its workers."""
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_one_thread)

_asked_for_none = os.environ.get("DIFFREG_CPU") == "none"
HAS_CORE = not _asked_for_none and (LIBRARY.exists() or any(PACKAGE.glob("_cpu_*.so")))
if HAS_CORE:
    CPU_VARIANT = _load_cpu_variant()
else:
    CPU_VARIANT = PLAIN
    PLAIN_LIBRARY = _define_schemas()
    if not _asked_for_none:
        warnings.warn(SLOW, RuntimeWarning, stacklevel=2)
