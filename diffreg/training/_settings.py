"""Values read from TOML as the types that settings have."""

from __future__ import annotations

from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin


def converted(name: str, value: Any, kind: Any) -> Any:
    """A TOML value as the type that a setting has; 2 may stand for 2.0, and 2.0 for 2.

    Args:
        name: the setting, for the message.
        value: as read.
        kind: the type: str, int, float, bool, a tuple, dict or union of them.

    Returns:
        The value, lists as tuples.

    Raises:
        ValueError: it does not fit.

    Example:
        >>> from diffreg.training._settings import converted
        >>> converted("data.slices", [1, 2], tuple[int, ...])
        (1, 2)
    """
    converted = _fitting(value, kind)
    if converted is None:
        raise ValueError(f"{name} must be {_described(kind)}, got {value!r}")
    return converted


def _fitting(value: Any, kind: Any) -> Any:
    """The value converted, or None where it does not fit; TOML itself has no None."""
    origin, of = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        return next((fit for k in of if (fit := _fitting(value, k)) is not None), None)
    if origin is tuple:
        return _fitting_tuple(value, of)
    if origin is dict:
        if not isinstance(value, Mapping):
            return None
        entries = {key: _fitting(item, of[1]) for key, item in value.items()}
        return None if None in entries.values() else entries
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is kind else None


def _fitting_tuple(value: Any, of: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """A list as a tuple; one value alone stands for a list of one."""
    endless = len(of) == 2 and of[1] is Ellipsis
    if not isinstance(value, list | tuple):
        value = [value] if endless else []
    kinds = of[:1] * len(value) if endless else of
    if len(value) != len(kinds):
        return None
    items = tuple(_fitting(item, k) for item, k in zip(value, kinds, strict=True))
    return None if None in items else items


def _described(kind: Any) -> str:
    """A type in words."""
    origin, of = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(_described(k) for k in of if k is not type(None))
    if origin is tuple:
        number = "a list of" if of[-1] is Ellipsis else f"a list of {len(of)}"
        return f"{number} {_described(of[0]).partition(' ')[2]}s"
    words = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    return words.get(kind, "a table" if of[-1:] == (Any,) else "a table of numbers")
