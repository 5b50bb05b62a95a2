"""Checkpoints: one file that appears whole or not at all and runs no code when it is read."""

from __future__ import annotations

import os
import pickle
import struct
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffreg._files import replacing
from diffreg.losses import Objective
from diffreg.models import build_model, memory_order
from diffreg.training.config import Config

# What damaged and foreign files raise inside torch.load; none of them has run code of the file.
_DAMAGE = (
    *(RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError, TypeError),
    *(AttributeError, AssertionError, OverflowError, MemoryError, struct.error),
)
FORMAT = "diffreg checkpoint 1"


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
        raise FileNotFoundError(f"{path} does not exist")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a checkpoint")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about pickles that it then refuses
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        reason = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise ValueError(f"{path} is no checkpoint that can be read: {reason}") from None
    found = contents.get("format") if isinstance(contents, dict) else None
    if found != FORMAT:
        raise ValueError(
            f"{path} is no checkpoint of this version of diffreg: its format is {found!r}, "
            f"not {FORMAT!r}"
        )
    return contents


def load_network(path: str | Path) -> dict[str, Any]:
    """The network of a checkpoint, with the settings that it was trained with.

    Args:
        path: the file.

    Returns:
        network, normalization, objective and similarity, as `diffreg.registration.register` takes
        them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of this program.

    Example: `register(moving, fixed, **load_network("run/last.pt"))`
    """
    contents = read_checkpoint(path)
    missing = [key for key in ("config", "weights") if not isinstance(contents.get(key), dict)]
    if missing:
        raise ValueError(f"{path} is no checkpoint that can be used: it has no {missing[0]}")
    try:
        config = Config.from_dict(contents["config"])
    except ValueError as error:
        reason = " ".join(str(error).split())  # a damaged name may hold line breaks
        raise ValueError(f"{path}: its settings are of another version: {reason}") from None
    objective = Objective(**vars(config.objective))
    return {
        "network": network_of(contents, path),
        "normalization": config.normalization,
        "objective": objective,
        "similarity": "+".join(objective.similarity),
    }


def network_of(contents: dict[str, Any], path: str | Path) -> nn.Module:
    """Builds the network that a checkpoint describes, with its weights, for prediction."""
    try:
        model = dict(contents["config"]["model"])
        network = build_model(model.pop("name"), **model)
        network.load_state_dict(contents["weights"])
    except (RuntimeError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: its weights do not fit the network that it names") from None
    # Convolutions on a CPU are faster in this order. float32 whatever torch's default is.
    order: Any = memory_order(model.get("dimensions", 2))
    return network.float().eval().to(memory_format=order)  # type: ignore[no-any-return,call-overload]
