"""Trains a network of a study: any model, any loss, on images that are in memory.

`diffreg.training` is for images in files and for this package's networks; a study also trains other
people's, and draws thousands of small batches, which it does on the device. A run is a function of
its recipe: it goes on from its last checkpoint, and a finished one is read, not trained again. What
a recipe does not hold, such as the code itself, is not looked at: delete build/paper/runs after a
change of it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from drawing import Draw
from images import Pairs
from recipes import Recipe, build, learning_rate, loss_of
from torch import Tensor, nn

from diffreg.system.atomic import replacing
from diffreg.system.memory import kept_memory
from diffreg.training.graphs import Replayed

CHECKPOINT_SECONDS = 60.0
LONGEST = 2.0  # norm of a gradient


class Place(NamedTuple):
    """Where networks are trained, and where their runs are kept."""

    device: torch.device
    folder: Path


@dataclass
class Run:
    """A trained network, how it got there, and how long that took.

    Args:
        curve: one row now and then: step, loss of the batches since, loss on the test pairs,
            learning rate.
    """

    network: nn.Module
    curve: list[dict[str, float]]
    seconds: float
    device: str
    recipe: Recipe
    folder: Path


def fit(
    recipe: Recipe,
    draw: Callable[[torch.device], Draw],
    place: Place,
    test: Pairs | None = None,
    every: int = 100,
) -> Run:
    """The run of a recipe: read where it is finished, else trained, from its checkpoint on.

    Args:
        recipe: of the run.
        draw: device -> the batches; not called for a finished run.
        place: of the run.
        test: pairs whose loss is noted `every` so many steps.
    """
    device, folder = place
    path = folder / f"{recipe.key}.pt"
    network = build(recipe)
    held: dict[str, Any] = {"step": 0, "curve": [], "seconds": 0.0}
    if path.exists():
        held = _kept(path)
        network.load_state_dict(held["weights"])
    elif recipe.start:
        network.load_state_dict(_kept(folder / f"{recipe.start}.pt")["weights"])
    if held["step"] < recipe.steps:
        with kept_memory():
            held = _train(recipe, network, held, draw(device), device, test, every, path)
        network = build(recipe)  # VoxelMorph's keeps tensors of the device that it ran on
        network.load_state_dict(held["weights"])
    trained_on = held["device"]
    curve = [row | {"rate": learning_rate(recipe, row["step"] - 1)} for row in held["curve"]]
    network = network.eval().to(memory_format=torch.channels_last)
    return Run(network, curve, held["seconds"], trained_on, recipe, folder)


def _kept(path: Path) -> dict[str, Any]:
    held: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return held


def rows_of(run: Run, name: str, measure: Callable[[Run], list[dict]]) -> list[dict]:
    """What is measured of a run on pairs of that name; read where it was measured before."""
    return kept_rows(run.folder / f"{run.recipe.key}-{name}.json", lambda: measure(run))


def kept_rows(path: Path, measure: Callable[[], list[dict]]) -> list[dict]:
    """Rows of a file, or what is measured, which then is in it."""
    if not path.exists():
        rows = measure()
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(rows))
    found: list[dict] = json.loads(path.read_text())
    return found


class Step:
    """One optimisation step; on a GPU, after some eager ones, a CUDA graph of it.

    Args:
        network, loss: what is trained, on what.
        draw: the batches.
        start: the first step to take.
        device: of all of it.
        graph: whether the network allows one; VoxelMorph's integration copies from the host.
    """

    def __init__(
        self, network: nn.Module, loss, draw: Draw, start: int, device: torch.device, graph: bool
    ) -> None:
        self.network, self.loss, self.draw = network, loss, draw
        replays = device.type == "cuda" and graph
        self.rate = torch.zeros((), device=device)
        self.optimizer = torch.optim.Adam(
            network.parameters(), lr=self.rate, fused=True, capturable=replays
        )
        self.replayed = Replayed(self._step, replays, print)
        self.number = torch.full((1,), start, device=device)
        self.total = torch.zeros((), device=device)  # of the losses

    def __call__(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"].fill_(rate)
        self.total += self.replayed(self.number)
        self.number += 1

    def _step(self, number: Tensor) -> Tensor:
        moving, fixed = self.draw(number)
        loss = self.loss(moving, fixed, self.network(moving, fixed))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), LONGEST)
        self.optimizer.step()
        return loss.detach()


def _train(recipe, network, held, draw, device, test, every, path) -> dict[str, Any]:
    network.to(device).to(memory_format=torch.channels_last).train()
    loss, curve = loss_of(recipe), list(held["curve"])
    step = Step(network, loss, draw, held["step"], device, recipe.model != "voxelmorph")
    if "optimizer" in held:
        step.optimizer.load_state_dict(held["optimizer"])
        for group in step.optimizer.param_groups:  # what the checkpoint has of another device
            group["lr"], group["capturable"] = step.rate, step.replayed.replays
    begin, saved = time.perf_counter() - held["seconds"], time.perf_counter()

    def save(done: int) -> dict[str, Any]:
        found = {
            "recipe": asdict(recipe),
            "step": done,
            "curve": curve,
            "seconds": time.perf_counter() - begin,
            "device": _name(device),
            "weights": {k: v.cpu() for k, v in network.state_dict().items()},
        }
        unfinished = {"optimizer": step.optimizer.state_dict()} if done < recipe.steps else {}
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            torch.save(found | unfinished, temporary)
        return found

    since = 0
    for done in range(held["step"] + 1, recipe.steps + 1):
        step(learning_rate(recipe, done - 1))
        since += 1
        if done % every == 0 or done == recipe.steps:
            row = {"step": done, "training": step.total.item() / since}
            if not math.isfinite(row["training"]):
                raise FloatingPointError(
                    f"the loss of {recipe} is {row['training']} at step {done}"
                )
            if test is not None:
                row["test"] = _on_test(network, loss, test, device)
            curve.append(row)
            step.total.zero_()
            since = 0
            if time.perf_counter() - saved > CHECKPOINT_SECONDS and done < recipe.steps:
                save(done)
                saved = time.perf_counter()
    return save(recipe.steps)


def _on_test(network: nn.Module, loss, test: Pairs, device: torch.device) -> float:
    network.eval()
    with torch.no_grad():
        moving, fixed = test.moving.to(device), test.fixed.to(device)
        value = loss(moving, fixed, network(moving, fixed)).item()
    network.train()
    return value


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
