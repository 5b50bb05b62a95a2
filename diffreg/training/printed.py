"""Settings as a TOML file that says what each of them means, by the docstrings of their classes."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from diffreg.models import MODELS
from diffreg.training.config import Config
from diffreg.training.own import OwnModel, is_path, keywords_of

_WIDTH = 96


def printed(config: Config) -> str:
    """All settings as commented TOML, which `load_config` reads as the same settings.

    Classes of the user's own are imported, to tell the keywords that were left out.

    Args:
        config: the settings; those that have no value, or one that follows from the others where
            they are left out, stand in a comment.

    Example:
        >>> from diffreg.training.config import Config
        >>> from diffreg.training.printed import printed
        >>> "batch_size = 8" in printed(Config())
        True
    """
    return "\n".join(_section(f.name, getattr(config, f.name)) for f in fields(config))


def _section(name: str, settings: Any) -> str:
    title = (inspect.getdoc(type(settings)) or "").partition("\n")[0]
    lines = [*_comment(title), f"[{name}]"]
    if name == "model":
        lines += _comment(f"{', '.join(MODELS)}, or an import path, package.module:Class")
        lines.append(f"name = {toml(settings.name)}")
    if isinstance(settings, OwnModel):
        lines += [f"{_key(key)} = {toml(value)}" for key, value in settings.settings.items()]
        taken = {"name": settings.name, **settings.settings}
        lines += _left_out(settings.name, "model.name", taken)
        return "\n".join([*lines, ""])
    words = described(type(settings))
    for f in fields(settings):
        value = getattr(settings, f.name)
        lines += ["", *_comment(words[f.name])]
        line = f"{f.name} =" if value is None else f"{f.name} = {toml(value)}"
        follows = f.default is None and replace(settings, **{f.name: None}) == settings
        lines.append(f"# {line}" if follows else line)
        if name == "data" and f.name == "settings" and settings.name:
            lines += _left_out(settings.name, "data.name", value)
    return "\n".join([*lines, ""])


def _left_out(path: str, setting: str, given: Mapping[str, Any]) -> list[str]:
    """The keywords of a class of the user's own that are left out, in comments."""
    if not is_path(path):
        return []
    try:
        keywords = keywords_of(path, setting)
    except (ImportError, ValueError) as error:
        return _comment(f"What else it takes is not known here: {error}")
    return [
        f"# {_key(key)} = {'' if value is None else toml(value)}".rstrip()
        for key, value in keywords.items()
        if key not in given
    ]


def described(kind: type) -> dict[str, str]:
    """What the docstring of a dataclass says of each of its fields.

    Example:
        >>> from diffreg.training.config import OptimizerConfig
        >>> from diffreg.training.printed import described
        >>> described(OptimizerConfig)["learning_rate"]
        'of the first step after the warm-up.'
    """
    text = (inspect.getdoc(kind) or "").partition("Args:\n")[2]
    text = re.split(r"\n\n\S", text)[0]
    found = {}
    for entry in re.split(r"\n(?= {4}\w)", "\n" + text):
        names, _, words = entry.partition(":")
        for name in names.split(","):
            found[name.strip()] = " ".join(words.split())
    return found


def _comment(words: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(words, _WIDTH, break_long_words=False)]


def _key(name: str) -> str:
    return name if re.fullmatch(r"[\w-]+", name, re.ASCII) else toml(name)


def toml(value: Any) -> str:
    """A value as TOML has it.

    Example:
        >>> from diffreg.training.printed import toml
        >>> toml({"ncc": 1.0, "my_package.losses:nmi": (True, "a")})
        '{ncc = 1.0, "my_package.losses:nmi" = [true, "a"]}'
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value) if isinstance(value, bool) else repr(value)
