"""Loads the compiled library diffreg._C, which registers torch.ops.diffreg.*."""

import torch

from diffreg import __version__

REBUILD = (
    "run: pip install --no-build-isolation --force-reinstall --no-deps . (in the source folder)"
)


def build_info() -> dict[str, str]:
    """What the compiled library was built from and for.

    Returns:
        Version, torch at build time, oldest torch at run time, compiler, CPU variant and CUDA
        architectures.

    Raises:
        ImportError: the library is missing, or does not fit this package or this torch.
    """
    try:
        from diffreg import _C  # type: ignore[attr-defined]
    except ImportError as error:
        raise ImportError(
            f"diffreg's compiled core does not load under torch {torch.__version__} ({error}); "
            + REBUILD
        ) from None
    info = _C.build_info()
    if info["version"] != __version__:
        raise ImportError(
            f"diffreg's compiled core is of version {info['version']}, the package of version "
            f"{__version__}; {REBUILD}"
        )
    return info


build_info()
