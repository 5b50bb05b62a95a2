"""The settings of a training run: frozen dataclasses, one for each section of a TOML file.

A checkpoint holds `Config.to_dict()`.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from diffreg.data.augmentation import Augmentation
from diffreg.data.normalization import Normalization
from diffreg.models import MODELS
from diffreg.models.lunet import LUNetConfig
from diffreg.system.extras import toml_reader
from diffreg.system.files import read_text
from diffreg.training._settings import converted
from diffreg.training.own import GIVEN, OwnModel, is_path, plugins
from diffreg.training.sections import (
    EXTRA,
    DataConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainingConfig,
)

__all__ = [
    "EXTRA",
    "Config",
    "DataConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "TrainingConfig",
    "load_config",
]

# Settings that hold paths: in the file they are relative to its folder, in an override to the
# working folder.
_PATHS = {("data", "images"), ("data", "validation"), ("data", "cache"), ("training", "out")}
_START = ("training", "start")  # a path, or the name of a network that comes with the package


@dataclass(frozen=True)
class Config:
    """All settings of a training run, one attribute for each section of the file.

    Example:
        >>> from diffreg.training.config import Config
        >>> Config().training.batch_size
        8
    """

    data: DataConfig = field(default_factory=DataConfig)
    normalization: Normalization = field(default_factory=Normalization)
    augmentation: Augmentation = field(default_factory=Augmentation)
    model: LUNetConfig | OwnModel = field(default_factory=LUNetConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain containers, as `from_dict` and a checkpoint take them."""
        plain = {f.name: _plain(dataclasses.asdict(getattr(self, f.name))) for f in fields(self)}
        model = self.model.settings if isinstance(self.model, OwnModel) else plain["model"]
        plain["model"] = {"name": self.model.name, **_plain(model)}
        return plain

    @staticmethod
    def from_dict(sections: Mapping[str, Any]) -> Config:
        """The settings of {section: {key: value}}; what is left out keeps its default.

        Raises:
            ValueError: a section or key that is not known, or a value that does not fit.
        """
        known = [f.name for f in fields(Config)]
        types = get_type_hints(Config)
        built = {}
        for name, table in sections.items():
            if name not in known:
                raise ValueError(f"there is no section [{name}]{_nearest(name, known)}")
            if not isinstance(table, Mapping):
                raise ValueError(f"[{name}] must be a section of settings, got {table!r}")
            built[name] = _section(name, dict(table), types[name])
        return Config(**built)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file of settings.

    Args:
        path: the file. Paths in it are relative to its folder.
        overrides: "section.key=value", the value as in TOML; text needs no quotes. Paths here are
            relative to the working folder.

    Returns:
        The settings, all paths that were given absolute.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not TOML, or a section, key or value is wrong; the message names it.

    Example:
        >>> import pathlib, tempfile
        >>> from diffreg.training.config import load_config
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "a.toml"
        ...     _ = file.write_text("[training]\\nsteps = 10")
        ...     load_config(file, ["training.seed=3"]).training.seed
        3
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a TOML file")
    try:
        sections = toml_reader().loads(read_text(path))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from None
    try:
        Config.from_dict(sections)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    _make_absolute(sections, path.absolute().parent)
    for override in overrides:
        _override(sections, override)
    return Config.from_dict(sections)


def _override(sections: dict[str, Any], override: str) -> None:
    """Put one "section.key=value" into the sections."""
    match = re.fullmatch(r"\s*(\w+)\.(\w+)\s*=(.*)", override, re.DOTALL)
    if match is None:
        raise ValueError(f"a setting must be section.key=value, got {override!r}")
    section, key, text = match.groups()
    try:
        value = toml_reader().loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()  # text without quotes
    if (section, key) in _PATHS | {_START} and not isinstance(value, str | list):
        value = text.strip()  # a file or folder that is called 2024
    if section == "model" and key == "name":
        # Another model has settings of its own, of images or volumes as before.
        model = sections.get("model", {})
        sections["model"] = {k: v for k, v in model.items() if k == "dimensions"}
    given = {section: {key: value}}
    trial = {section: {**sections.get(section, {}), key: value}}
    Config.from_dict(trial)
    _make_absolute(given, Path.cwd())
    sections[section] = {**trial[section], **given[section]}


def _make_absolute(sections: dict[str, Any], folder: Path) -> None:
    """Paths that are not absolute become so, from `folder`."""
    for section, key in _PATHS | {_START}:
        value = sections.get(section, {}).get(key)
        if not value or ((section, key) == _START and _is_name(value, folder)):
            continue
        several = [value] if isinstance(value, str) else value
        absolute = [str(folder / _of_home(item, f"{section}.{key}")) for item in several]
        sections[section][key] = absolute[0] if isinstance(value, str) else absolute


def _of_home(path: str, name: str) -> str:
    """A path in which ~ is somebody's home."""
    found = os.path.expanduser(path)
    if found.startswith("~") and not os.path.exists(found):
        raise ValueError(f"{name}: {path}: {found.partition('/')[0]} is nobody's home")
    return found


def _is_name(value: str, folder: Path) -> bool:
    """Whether it is one word without a suffix, and no file in the folder."""
    path = Path(value)
    return len(path.parts) < 2 and not path.suffix and not (folder / path).is_file()


def _section(name: str, table: dict[str, Any], kind: Any) -> Any:
    """One section's dataclass."""
    if name == "model":
        model = table.pop("name", "lunet")
        if model not in MODELS:
            return _own_model(model, table)
        kind = MODELS[model].Config
    types = get_type_hints(kind)
    known = [f.name for f in fields(kind)]
    values = {}
    for key, value in table.items():
        if key not in known:
            raise ValueError(f"there is no setting {name}.{key}{_nearest(key, known, name)}")
        values[key] = converted(f"{name}.{key}", value, types[key])
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"[{name}] {error}") from None


def _own_model(name: Any, settings: dict[str, Any]) -> OwnModel:
    """A network by its import path, or by the name that an installed package gives it."""
    known = {} if is_path(name) or name == GIVEN else plugins()
    if not is_path(name) and name not in (GIVEN, *known):
        names = [*MODELS, *known]
        raise ValueError(
            f"model.name must be one of {', '.join(names)}, or an import path, package.module:Class"
            f", got {name!r}{_nearest(str(name), names)}"
        )
    try:
        return OwnModel(known.get(name, name), settings)
    except ValueError as error:
        raise ValueError(f"[model] {error}") from None


def _nearest(word: str, known: Sequence[str] | Mapping[str, Any], section: str = "") -> str:
    """What was probably meant, else all that is possible."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    if close:
        return (
            f"; the nearest is {section}.{close[0]}" if section else f"; the nearest is {close[0]}"
        )
    return f"; known are {', '.join(known)}"


def _plain(value: Any) -> Any:
    """Tuples as lists, as TOML has them; no entry for what is None."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
