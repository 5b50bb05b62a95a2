"""Import an optional package, or say in one line how to get it."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType


def require(module: str, purpose: str, extra: str = "app") -> ModuleType:
    """Import `module`, which `import diffreg.ops` does without.

    Args:
        module: dotted name, such as "nibabel" or "matplotlib.pyplot".
        purpose: what it is for, as it follows "is needed for".
        extra: of this package, that brings it.

    Returns:
        The imported module.

    Raises:
        ImportError: the package is not installed.

    Example:
        >>> from diffreg.system.extras import require
        >>> require("json", "reading metrics").loads("[1]")
        [1]
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise  # installed, but one of its own imports is missing: another trouble
        raise ImportError(
            f"{package} is needed for {purpose}: pip install 'diffreg[{extra}]'"
        ) from error


def toml_reader() -> ModuleType:
    """The module that reads TOML: Python's own, or tomli on Python 3.10.

    Returns:
        A module with `loads`.

    Raises:
        ImportError: Python 3.10 without tomli.

    Example:
        >>> from diffreg.system.extras import toml_reader
        >>> toml_reader().loads("a = 1")
        {'a': 1}
    """
    if sys.version_info >= (3, 11):
        return importlib.import_module("tomllib")
    return require("tomli", "reading TOML files on Python 3.10")
