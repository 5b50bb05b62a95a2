"""The user's own code: where an error came from, and whether a function can be called so."""

from __future__ import annotations

import inspect
import sysconfig
import traceback
from pathlib import Path
from typing import Any

_INSTALLED = {"site-packages", "dist-packages"}


def place_of(error: BaseException, installed: bool = False) -> str:
    """The user's file and line that an error went through last, as " (FILE, line N)"; "": none.

    Args:
        error: what was raised.
        installed: whether code of the user's may be an installed package, too: then, where no
            other is found, the one that was called first, torch left aside.

    Example:
        >>> from diffreg.system.own_code import place_of
        >>> place_of(ValueError("raised by nobody"))
        ''
    """
    paths = sysconfig.get_paths()
    others = [Path(__file__).parents[1], Path(paths["stdlib"]), Path(paths["platstdlib"])]
    own, packaged = [], []
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = Path(frame.f_code.co_filename)
        place = f" ({file}, line {line})"
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if not file.is_file():
            continue
        if _INSTALLED & set(file.parts):
            packaged.append((package, place))
        elif not any(file.is_relative_to(folder) for folder in others):
            own.append(place)
    if own or not installed:
        return own[-1] if own else ""
    called = [found for found in packaged if found[0] not in ("diffreg", "torch")]
    return next((place for package, place in reversed(called) if package == called[0][0]), "")


def check_takes(function: Any, name: str, *arguments: str) -> None:
    """Refuse what cannot be called with so many arguments, before it is.

    Args:
        function: or a module, whose `forward` it is.
        name: what the message calls it.
        arguments: the names of what it is given, in their order.

    Raises:
        TypeError: it takes others. What says nothing of its arguments is taken to fit.

    Example:
        >>> from diffreg.system.own_code import check_takes
        >>> check_takes(max, "the network", "moving", "fixed")
    """
    method = getattr(function, "forward", function)
    if method is not function and _calls_otherwise(function):
        return
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):  # compiled
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        called = getattr(method, "__qualname__", type(function).__qualname__)
        raise TypeError(
            f"{name} must take ({', '.join(arguments)}), and {called}{signature} does not"
        ) from None


def _calls_otherwise(module: Any) -> bool:
    """Whether what a module is called with is not what its `forward` is given."""
    if getattr(module, "_forward_pre_hooks", None):
        return True
    return not getattr(type(module).__call__, "__module__", "").startswith("torch.")
