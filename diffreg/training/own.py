"""Parts of a user's own by import path, "my_package.nets:TransMorph": found, named, checked.

Settings hold the path alone. What it names is imported where a run begins, and never because a
checkpoint says so: to import is to run code.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from diffreg.models import dimensions_of
from diffreg.system.own_code import check_takes

GIVEN = "given"  # the name of a network that is an object, not a path
PLUGINS = "diffreg.models"  # the group of entry points
UNNAMED = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.VAR_KEYWORD,
)


@dataclass(frozen=True)
class OwnModel:
    """A network that does not come with diffreg.

    Args:
        name: "package.module:Class", or "given": an object that was handed to the Trainer.
        settings: the keywords of the class; of an object its kind, "package.module.Class". What
            is called `dimensions` says whether images or volumes are read, and is handed to the
            class only where it has such a keyword.

    Raises:
        ValueError: settings that a checkpoint cannot hold, or dimensions other than 2 and 3.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.settings.get("dimensions", 2) not in (2, 3):
            raise ValueError(f"dimensions must be 2 or 3, got {self.settings['dimensions']!r}")
        for key, value in self.settings.items():
            if not is_plain(value):
                raise ValueError(
                    f"{key} must be text, a number, true or false, or lists and tables of these, "
                    f"got {value!r}"
                )

    @property
    def dimensions(self) -> int:
        """D of its images: its keyword of that name, else 2."""
        return int(self.settings.get("dimensions", 2))

    @classmethod
    def given(cls, network: nn.Module, model: Any) -> OwnModel:
        """How settings name a network that is an object.

        Args:
            network: which may say D itself, by `dimensions` or `config.dimensions`.
            model: [model], which says it where the network does not.

        Raises:
            ValueError: they say different ones.
        """
        kind = f"{type(network).__module__}.{type(network).__qualname__}"
        own, default = dimensions_of(network), model.dimensions == 2
        if isinstance(model, OwnModel):
            default = "dimensions" not in model.settings
        if own is not None and own != model.dimensions and not default:
            raise ValueError(
                f"[model] says dimensions = {model.dimensions}, and the network that was given, a "
                f"{type(network).__name__}, {own}: leave it out of [model]"
            )
        return cls(GIVEN, {"kind": kind, "dimensions": own or model.dimensions})


def is_plain(value: Any) -> bool:
    """Whether a value is made of what TOML and a checkpoint both have."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, str | int | float)


def is_path(name: Any) -> bool:
    """Whether a name is an import path.

    Example:
        >>> from diffreg.training.own import is_path
        >>> is_path("my_package.nets:TransMorph"), is_path("lunet")
        (True, False)
    """
    return isinstance(name, str) and re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", name) is not None


def plugins() -> dict[str, str]:
    """Networks that installed packages bring, name -> import path: entry points `diffreg.models`.

    Nothing is imported.
    """
    return {point.name: point.value for point in metadata.entry_points(group=PLUGINS)}


def imported(path: str, setting: str) -> Any:
    """What an import path names.

    Args:
        path: "package.module:name".
        setting: where it stands, for the message.

    Raises:
        ValueError: it is no such path, or the module has no such name.
        ImportError: there is no such module, or it does not find one of its own.

    Example:
        >>> from diffreg.training.own import imported
        >>> imported("diffreg.losses:SSD", "objective.similarity").__name__
        'SSD'
    """
    if not is_path(path):
        raise ValueError(f"{setting} must be an import path, package.module:name, got {path!r}")
    module, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{setting} = {path!r} cannot be imported: {error}; install its package, or put the "
            "folder of its file on PYTHONPATH"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{setting} = {path!r}: {module} has no {name}")
        found = getattr(found, part)
    return found


def made(path: str, setting: str, settings: Mapping[str, Any]) -> Any:
    """The object of a class or function that an import path names, its settings as keywords.

    Raises:
        ImportError, ValueError: as `imported`, or settings that it does not take.
    """
    return called(imported(path, setting), path, setting, settings)


def called(maker: Any, path: str, setting: str, settings: Mapping[str, Any]) -> Any:
    """The same, once it is imported."""
    if not callable(maker):
        raise ValueError(f"{setting} = {path!r} must be a class, got {type(maker).__name__}")
    try:
        inspect.signature(maker).bind(**settings)
    except TypeError as error:
        raise ValueError(f"{setting} = {path!r} does not take these settings: {error}") from None
    except ValueError:
        pass  # a maker that is compiled says nothing of its arguments
    return maker(**settings)


def own_network(model: OwnModel, setting: str = "model.name") -> nn.Module:
    """The network that an import path names, with fresh weights.

    Raises:
        ImportError, ValueError: as `imported`; it is no class of torch.nn.Module, or does not take
            the settings.
    """
    if model.name == GIVEN:
        raise ValueError(
            f"{setting} = {GIVEN!r} is of a network that is an object: give it, "
            "Trainer(config, network=...)"
        )
    kind = _class_of(model, setting)
    given = model.settings
    if not _takes_dimensions(kind):
        given = {key: value for key, value in given.items() if key != "dimensions"}
    network: nn.Module = called(kind, model.name, setting, given)
    return network


def settled(model: Any, setting: str = "model.name") -> Any:
    """The same description of a network, with the D that its class has as the default.

    Raises:
        ImportError, ValueError: as `imported`, or it is no class of torch.nn.Module.
    """
    if not isinstance(model, OwnModel) or model.name == GIVEN or "dimensions" in model.settings:
        return model
    keyword = (_keywords(_class_of(model, setting)) or {}).get("dimensions")
    if keyword is None or keyword.default != 3:
        return model
    return OwnModel(model.name, {**model.settings, "dimensions": 3})


def _class_of(model: OwnModel, setting: str) -> type[nn.Module]:
    kind = imported(model.name, setting)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(
            f"{setting} = {model.name!r} must be a class of torch.nn.Module, got {kind!r}"
        )
    return kind


def _keywords(maker: Any) -> Mapping[str, inspect.Parameter] | None:
    """None: what is compiled, or cannot be called, says nothing of its arguments."""
    try:
        return inspect.signature(maker).parameters
    except (TypeError, ValueError):
        return None


def keywords_of(path: str, setting: str) -> dict[str, Any]:
    """Keyword -> default of the class or function that an import path names; None: it has none.

    Raises:
        ImportError, ValueError: as `imported`.

    Example:
        >>> from diffreg.training.own import keywords_of
        >>> keywords_of("diffreg.losses:SSD", "objective.similarity")
        {'reduction': 'mean'}
    """
    keywords = _keywords(imported(path, setting)) or {}
    named = (each for each in keywords.values() if each.kind not in UNNAMED)
    return {each.name: None if each.default is each.empty else each.default for each in named}


def _takes_dimensions(kind: type) -> bool:
    keywords = _keywords(kind)
    if keywords is None or "dimensions" in keywords:
        return True
    return any(each.kind is each.VAR_KEYWORD for each in keywords.values())


def needed(*paths: str) -> dict[str, str]:
    """Import path -> the package that it is of and its version, "" where none is installed."""
    packages = metadata.packages_distributions() if paths else {}
    found = {}
    for path in paths:
        names = packages.get(re.split(r"[.:]", path)[0], [])
        found[path] = ", ".join(f"{name} {metadata.version(name)}" for name in dict.fromkeys(names))
    return found


def check_trainable(network: Any) -> None:
    """Raises unless it is a module of two images with parameters that are trained."""
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a torch.nn.Module, got {type(network).__name__}")
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(
            f"network must have parameters to train; {type(network).__name__} has none"
        )
    check_takes(network, "the network", "moving", "fixed")


def set_checkpointing(network: nn.Module, wanted: bool) -> None:
    """Tell a network whether to compute activations anew in the backward pass.

    Raises:
        ValueError: it is wanted, and the network has no such attribute.
    """
    if hasattr(network, "activation_checkpointing"):
        network.activation_checkpointing = wanted  # type: ignore[assignment]
    elif wanted:
        raise ValueError(
            f"training.activation_checkpointing is of lunet; {type(network).__name__} has no such "
            "attribute: torch.utils.checkpoint inside the network does the same"
        )


def check_displacement(displacement: Any, fixed: Tensor) -> None:
    """Raises unless a network gave what it must: forward(moving, fixed) -> (N, D, *S) in voxels."""
    contract = "a network must give the displacement (N, D, *S) in voxels of images (N, C, *S)"
    if not isinstance(displacement, Tensor):
        raise TypeError(f"{contract}, got {type(displacement).__name__}")
    expected = (len(fixed), fixed.ndim - 2, *fixed.shape[2:])
    if tuple(displacement.shape) != expected:
        raise ValueError(f"{contract}, here {expected}, got {tuple(displacement.shape)}")
    if not displacement.is_floating_point():
        raise TypeError(f"{contract}, of a floating dtype, got {displacement.dtype}")
    if displacement.device != fixed.device:
        raise ValueError(f"{contract}, on {fixed.device}, got {displacement.device}")


def check_first(displacement: Tensor) -> None:
    """What else is looked at once, at the first step: it can be trained, and is finite."""
    if not displacement.requires_grad:
        raise ValueError(
            "the network's displacement must depend on its parameters, and has no gradient: is it "
            "detached, or made under torch.no_grad()?"
        )
    if not bool(torch.isfinite(displacement).all()):
        raise ValueError("the network's displacement must be finite at the first step, and is not")
