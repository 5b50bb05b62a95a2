"""What a run leaves in its checkpoints, and which one it may go on from, or begin with."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from diffreg.models import LUNetConfig
from diffreg.training.checkpoint import read_checkpoint, versions
from diffreg.training.config import Config
from diffreg.training.datasets import Pairs
from diffreg.training.pretrained import checkpoint_path

# How a network's input lies in space, kept with the weights.
_ORIENTATION = "stored array axes; the moving image on the fixed image's grid; displacement voxels"

# Settings that may differ where a run goes on; all others make it another run.
_MAY_CHANGE = {
    ("training", key)
    for key in (
        *("out", "steps", "checkpoint_every", "resume", "device", "tensorboard", "callbacks"),
        *("validate_every", "patience", "graph", "activation_checkpointing"),
    )
} | {
    ("data", key)
    for key in (
        *("validation", "validation_groups", "validation_share"),
        *("validation_settings", "workers", "cache"),
    )
}


def contents_of(trainer: Any) -> dict[str, Any]:
    """What is needed to go on with a run (a `Trainer`), and to use its network."""
    config, dataset, validation = trainer.config, trainer.dataset, trainer.validation
    epoch, place = dataset.epoch(trainer.step * config.training.batch_size)
    return {
        "config": config.to_dict(),
        "versions": versions(),
        "needs": trainer.needs,
        **trainer.optimization.state(),
        "learning_rate": trainer.learning_rate(trainer.step),
        "step": trainer.step,
        "epoch": epoch,
        "place_in_epoch": place,
        "best": trainer.best,
        "unvalidated": trainer.unvalidated,
        "validation": validation.names if validation else [],
        "spacing": list(dataset.spacing or ()),
        "spacing_mm": [list(lengths) for lengths in dataset.spacing_mm],
        "orientation": _ORIENTATION,
        "pairs": dataset.names,
    }


def goes_on(config: Config, last: Path) -> bool:
    """Whether a run goes on from its last checkpoint; asked before images are read and moved.

    Raises:
        ValueError: there is one, and `training.resume` is not set or it is of other settings.
    """
    if not last.exists():
        return False
    if not config.training.resume:
        raise ValueError(
            f"{last} is the checkpoint of an earlier run: set training.resume=true (--resume) "
            "to continue it, or give another training.out"
        )
    _check_settings(read_checkpoint(last), config, last)
    return True


def check_same_run(
    contents: dict[str, Any], config: Config, pairs: Pairs, path: str | Path
) -> None:
    """Refuse a checkpoint that another run left: going on from it would be neither.

    Args:
        contents: of the checkpoint.
        config: of the run that would go on.
        pairs: to train on.
        path: of the checkpoint, for the message.

    Raises:
        ValueError: another setting, or other pairs; or it was exported, without its optimiser.
    """
    _check_settings(contents, config, path)
    if not pairs.are(contents["pairs"]):
        raise ValueError(f"{path} is of a run on other pairs; give another training.out")


def _check_settings(contents: dict[str, Any], config: Config, path: str | Path) -> None:
    if "optimizer" not in contents:
        raise ValueError(
            f"{path} was exported, without the optimiser that a run goes on with: give it as "
            "training.start, and another training.out"
        )
    ours = config.to_dict()
    for section, table in Config.from_dict(contents["config"]).to_dict().items():
        for key in dict.fromkeys((*table, *ours[section])):  # a part's name before its keywords
            if (section, key) in {*_MAY_CHANGE, ("data", "images")}:
                continue  # of images the pairs are compared: the folder may have moved
            before, now = table.get(key), ours[section].get(key)
            if (section, key) == ("training", "start"):  # its folder may have moved
                before, now = (Path(start or "").name for start in (before, now))
            if before != now:
                raise ValueError(
                    f"{path} is of a run with {section}.{key} = {before!r}, not {now!r}: set that "
                    "to go on with it, or give another training.out"
                )


def weights_of(start: str, config: Config) -> dict[str, torch.Tensor]:
    """Those of the checkpoint that a run begins with, which has to be of such a network.

    Args:
        start: a file, or a network that comes with the package.
        config: of the run.

    Raises:
        FileNotFoundError, ValueError: it is neither, or of another network.
    """
    contents = read_checkpoint(checkpoint_path(start))
    theirs, ours = (
        {"name": type(model).__name__.removesuffix("Config").lower(), **asdict(_of_one_pass(model))}
        for model in (Config.from_dict(contents["config"]).model, config.model)
    )
    differ = [key for key in theirs if key not in ours or theirs[key] != ours[key]]
    if theirs != ours:
        held = ", ".join(f"{key} = {theirs[key]}" for key in differ)
        asked = ", ".join(f"{key} = {ours.get(key, 'nothing')}" for key in differ)
        raise ValueError(f"training.start: {start} has {held}, and [model] has {asked}")
    weights: dict[str, torch.Tensor] = contents["weights"]
    return weights


def _of_one_pass(model: Any) -> Any:
    """How often a network looks is nothing that its weights have to fit."""
    return replace(model, passes=1) if isinstance(model, LUNetConfig) else model
