"""Checkpoints: one file that appears whole or not at all and runs no code when it is read."""

from __future__ import annotations

import os
import pickle
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from diffreg import __version__
from diffreg.data.voxels import Voxels
from diffreg.models import build_model, in_memory_order
from diffreg.system.atomic import replacing
from diffreg.training.config import Config
from diffreg.training.own import GIVEN, OwnModel, is_path, own_network
from diffreg.training.terms import objective_of

# What damaged and foreign files raise inside torch.load; none of them has run code of the file.
_DAMAGE = (
    *(RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError, TypeError),
    *(AttributeError, AssertionError, OverflowError, MemoryError, struct.error),
)
FORMAT = "diffreg checkpoint 1"
_PROGRAMS = (".pt2", ".onnx")  # what diffreg export --pt2 and --onnx write


def write_checkpoint(path: str | Path, contents: dict[str, Any]) -> None:
    """Write a checkpoint: to the disk first, then under its name.

    Args:
        path: the file; its folder must exist.
        contents: plain containers, numbers, text and tensors, nothing else.

    Example: `write_checkpoint("last.pt", {"step": 10})`
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save({"format": FORMAT, **contents}, file)
        file.flush()
        os.fsync(file.fileno())


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint; only plain containers and tensors are let in.

    Args:
        path: the file.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of this program.

    Example: `read_checkpoint("last.pt")["step"]`
    """
    path = Path(path)
    if not path.exists():
        ships = (Path(__file__).parent / "pretrained" / f"{path}.pt").is_file()
        hint = f'; load_pretrained("{path}") gives the network that comes with diffreg' * ships
        raise FileNotFoundError(f"{path} does not exist{hint}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a checkpoint")
    if path.suffix.lower() in _PROGRAMS:
        raise ValueError(
            f"{path} is an exported program, for other tools; as a checkpoint give the run's, or "
            "what diffreg export CHECKPOINT -o NAME.pt writes"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about pickles that it then refuses
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        reason = str(error).strip().partition("\n")[0].partition(". ")[0]
        reason = reason or "it is empty or damaged"
        raise ValueError(f"{path} is no checkpoint that can be read: {reason}") from None
    found = contents.get("format") if isinstance(contents, dict) else None
    if found != FORMAT:
        raise ValueError(
            f"{path} is no checkpoint of this version of diffreg: its format is {found!r}, "
            f"not {FORMAT!r}"
        )
    return contents


def load_network(
    path: str | Path, network: nn.Module | None = None, trust: bool = False
) -> dict[str, Any]:
    """The network of a checkpoint, with the settings that it was trained with.

    Args:
        path: the file.
        network: one of the kind that the checkpoint holds weights of, which takes them; None: it is
            built, from what the file says of it.
        trust: whether what the file names may be imported, which runs code: a network or a measure
            that does not come with diffreg.

    Returns:
        network, normalization, objective, similarity, trained_on and contrast_free, as
        `diffreg.registration.register` takes them.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: what it needs is not installed.
        ValueError: it is no checkpoint of this program, or needs what `trust` does not allow.

    Example: `register(moving, fixed, **load_network("run/last.pt"))`
    """
    contents = read_checkpoint(path)
    config = config_of(contents, path)
    _check_trusted(config, contents, path, network, trust)
    try:
        objective = objective_of(config.objective)
        found = network_of(config.model, contents["weights"], path, network)
    except ImportError as error:
        names = own_names(config, network is None)
        raise ImportError(f"{path} needs {_with_packages(names, contents)}: {error}") from error
    return {
        "network": found,
        "normalization": config.normalization,
        "objective": objective,
        "similarity": "+".join(objective.similarity),
        "trained_on": _voxels_of(contents, path),
        # Taught by known displacements, which know no intensities; its similarity is a help.
        "contrast_free": config.objective.displacement > 0,
    }


def config_of(contents: dict[str, Any], path: str | Path) -> Config:
    """The settings in a checkpoint that has settings and weights.

    Raises:
        ValueError: it has not, or they are of another version.
    """
    missing = [key for key in ("config", "weights") if not isinstance(contents.get(key), dict)]
    if missing:
        raise ValueError(f"{path} is no checkpoint that can be used: it has no {missing[0]}")
    try:
        return Config.from_dict(contents["config"])
    except ValueError as error:
        reason = " ".join(str(error).split())  # a damaged name may hold line breaks
        raise ValueError(f"{path}: its settings are of another version: {reason}") from None


def _voxels_of(contents: dict[str, Any], path: str | Path) -> Voxels:
    """Those that the network was trained on, as far as the checkpoint knows them."""
    try:
        return Voxels.of(contents)
    except (TypeError, ValueError):
        raise ValueError(
            f"{path}: spacing and spacing_mm must be lengths of voxels, "
            f"got {contents.get('spacing')!r:.80} and {contents.get('spacing_mm')!r:.80}"
        ) from None


def affine_of(path: str | Path) -> str | None:
    """How a checkpoint's run moved its images as a whole first, `data.affine`.

    Args:
        path: the file.

    Returns:
        None where that is not known: it was trained on a dataset of one's own.
    """
    contents = read_checkpoint(path)
    data = config_of(contents, path).data
    kept = contents.get("affine")
    return kept if isinstance(kept, str) else data.affine if data.images else None


def network_of(
    model: Any, weights: dict[str, Any], path: str | Path, network: nn.Module | None = None
) -> nn.Module:
    """The network that a checkpoint describes, or one given, with its weights, for prediction."""
    network = built(model) if network is None else network
    load_weights(network, weights, path)
    if isinstance(model, OwnModel) and not hasattr(network, "dimensions"):
        network.dimensions = model.dimensions  # type: ignore[assignment]
    # Convolutions on a CPU are faster in this order. float32 whatever torch's default is.
    return in_memory_order(network.float().eval(), model.dimensions)


def load_weights(network: nn.Module, weights: dict[str, Any], path: str | Path) -> None:
    """Raises a ValueError where the weights are another network's."""
    try:
        network.load_state_dict(weights)
    except (RuntimeError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: its weights do not fit the network that it names") from None


def built(model: Any) -> nn.Module:
    """A network with fresh weights, as [model] describes it."""
    if isinstance(model, OwnModel):
        return own_network(model)
    return build_model(model.name, **vars(model))


def fresh_network(config: Config) -> nn.Module:
    """Its weights are a function of the seed, whatever torch's default dtype is."""
    default = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.training.seed)  # those of GPUs stay as they are
        try:
            torch.set_default_dtype(torch.float32)
            return built(config.model)
        finally:
            torch.set_default_dtype(default)


def versions() -> dict[str, str]:
    """What a checkpoint says that it was made with."""
    return {"diffreg": __version__, "torch": str(torch.__version__), "numpy": np.__version__}


def _check_trusted(
    config: Config, contents: dict[str, Any], path: str | Path, network: Any, trust: bool
) -> None:
    """Raises where a checkpoint names what would have to be imported, and nobody allows that."""
    model = config.model
    if network is None and model.name == GIVEN and isinstance(model, OwnModel):
        raise ValueError(
            f"{path} is of a network that was given to the Trainer as an object, a "
            f"{model.settings.get('kind', 'module')!r}: give load_network(path, network=...) one "
            "of its kind"
        )
    names = own_names(config, network is None)
    if not names or trust:
        return
    said = _with_packages(names, contents)
    raise ValueError(
        f"{path} names what does not come with diffreg and would be imported, which runs its code: "
        f"{said}; if you know where the file is from, --trust or load_network(path, trust=True)"
    )


def _with_packages(names: Sequence[str], contents: dict[str, Any]) -> str:
    """Import paths with the packages, and their versions, that they were of in the run."""
    held = contents.get("needs")
    needs = held if isinstance(held, dict) else {}
    return ", ".join(f"{n!r} ({needs[n]!r})" if needs.get(n) else repr(n) for n in names)


def own_names(config: Config, of_network: bool = True) -> list[str]:
    """The import paths in the settings of a run that its checkpoint needs."""
    model = config.model
    own = of_network and isinstance(model, OwnModel) and model.name != GIVEN
    similarity = config.objective.similarity
    measures = [similarity] if isinstance(similarity, str) else similarity or ()
    return [*([model.name] if own else []), *filter(is_path, measures)]
