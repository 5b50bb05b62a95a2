"""Trains a network of a study: any model, any loss, on images that are in memory.

`diffreg.trainer` is for images in files and for this package's networks; a study also trains other
people's, and draws thousands of small batches, which it does on the device. A run is a function of
its recipe: it goes on from its last checkpoint, and a finished one is read, not trained again. What
a recipe does not hold, such as the code itself, is not looked at: delete build/paper/runs after a
change of it.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from images import Frames, Pairs
from torch import Tensor, nn

from diffreg._files import replacing
from diffreg._memory import kept_memory
from diffreg.data.synthetic import random_warp
from diffreg.losses import Objective, total_variation
from diffreg.models import build_model
from diffreg.ops import warp

CHECKPOINT_SECONDS = 60.0


class Place(NamedTuple):
    """Where networks are trained, and where their runs are kept."""

    device: torch.device
    folder: Path


FIELDS = 500  # that moving images are bent by
EAGER_STEPS = 3  # before a CUDA graph is made of one


@dataclass(frozen=True)
class Recipe:
    """All that a run depends on but its images, which `images` names.

    Args:
        images: what is trained on, in words that are unique to it.
        model: "lunet", "sn" or "voxelmorph"; "lunet" with `integrate` gives a velocity.
        similarity: measure -> factor.
        weights: (similarity, diffusion, bending, determinant).
        variation: weight of the total variation.
        bent: moving images are bent while training by random fields of up to this standard
            deviation, voxels.
        steps, batch, crop: optimisation steps, pairs a step, voxels of a side.
        start: key of the recipe whose network it begins with; "": random weights.
    """

    images: str
    model: str = "lunet"
    integrate: bool = False
    similarity: dict[str, float] = field(default_factory=lambda: {"ncc": 1.0, "lncc": 0.2})
    weights: tuple[float, float, float, float] = (60, 1, 30, 3)
    variation: float = 0.0
    bent: float = 0.0
    steps: int = 3000
    batch: int = 16
    crop: int = 96
    learning_rate: float = 2e-3
    seed: int = 0
    start: str = ""

    @property
    def key(self) -> str:
        """Of the file that the run is kept in."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


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


class Draw:
    """What each step is trained on: drawn beforehand, cut out on the device.

    No step needs the host, so that a GPU takes a whole one from a CUDA graph.

    Args:
        moving, fixed: images (K, H, W).
        chosen: (steps, N, 2), which of them.
        recipe: of the run.
        random: what the windows are drawn by.
        device: of the images.
    """

    def __init__(
        self,
        moving: Tensor,
        fixed: Tensor,
        chosen: Tensor,
        recipe: Recipe,
        random: np.random.Generator,
        device: torch.device,
    ) -> None:
        shape = (*chosen.shape[:2], 2)
        ends = np.array(moving.shape[1:]) - recipe.crop + 1
        self.first = torch.from_numpy(random.integers(ends, size=shape)).to(device)
        self.mirrored = torch.from_numpy(random.random(shape) < 0.5).to(device)
        self.turned = torch.from_numpy(random.random(shape[:1]) < 0.5).to(device)
        self.chosen = chosen.to(device)
        self.line = torch.arange(recipe.crop, device=device)
        self.images = moving.to(device), fixed.to(device)
        self.fields = None
        if recipe.bent:
            shape = (recipe.crop, recipe.crop)
            fields = [
                random_warp(shape, recipe.bent * part, recipe.crop / 10, random).displacement
                for part in random.random(FIELDS)
            ]
            self.fields = torch.cat(fields).to(device)
            which = random.integers(FIELDS, size=chosen.shape[:2])
            self.which_field = torch.from_numpy(which).to(device)

    def __call__(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """The pairs (N, 1, crop, crop) of a step (1,): windows, mirrored and turned alike."""
        first, mirrored = self.first[step][0], self.mirrored[step][0]
        rows, columns = (
            first[:, k, None] + torch.where(mirrored[:, k, None], self.line.flip(0), self.line)
            for k in (0, 1)
        )
        found = []
        for images, which in zip(self.images, self.chosen[step][0].unbind(1), strict=True):
            cut = images[which[:, None, None], rows[:, :, None], columns[:, None]][:, None]
            found.append(torch.where(self.turned[step], cut.mT, cut))
        if self.fields is not None:
            found[0] = warp(found[0], self.fields[self.which_field[step][0]])
        return found[0], found[1]


def drawing(frames: Frames, recipe: Recipe, device: torch.device) -> Draw:
    """Two images of one series."""
    random = np.random.default_rng([recipe.seed])
    members = [np.flatnonzero(frames.series == s) for s in frames.series.unique()]
    members = [m for m in members if len(m) > 1]
    which = random.integers(len(members), size=recipe.steps * recipe.batch)
    chosen = np.stack([random.choice(members[k], 2, replace=False) for k in which])
    both = torch.from_numpy(chosen).reshape(recipe.steps, recipe.batch, 2)
    return Draw(frames.images, frames.images, both, recipe, random, device)


def drawing_pairs(pairs: Pairs, recipe: Recipe, device: torch.device) -> Draw:
    """Given pairs."""
    random = np.random.default_rng([recipe.seed])
    which = torch.from_numpy(random.integers(len(pairs), size=(recipe.steps, recipe.batch)))
    both = which[..., None].expand(-1, -1, 2)
    return Draw(pairs.moving[:, 0], pairs.fixed[:, 0], both, recipe, random, device)


def build(recipe: Recipe) -> nn.Module:
    """The network at its start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        if recipe.model == "voxelmorph":
            return VoxelMorph()
        return build_model(recipe.model, integrate=recipe.integrate)


class VoxelMorph(nn.Module):
    """VoxelMorph's network, of about the LU-net's size, with its integration."""

    def __init__(self) -> None:
        super().__init__()
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from voxelmorph.nn.models import VxmPairwise
        self.network = VxmPairwise(
            ndim=2,
            source_channels=1,
            target_channels=1,
            nb_features=[16, 32, 32, 32],
            integration_steps=7,
        )

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        return self.network(moving, fixed, return_field_type="displacement")


def loss_of(recipe: Recipe) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(moving, fixed, displacement) -> the loss of a batch."""
    objective = Objective(recipe.similarity, recipe.weights)

    def loss(moving: Tensor, fixed: Tensor, displacement: Tensor) -> Tensor:
        total = objective(moving, fixed, displacement, return_warped=False).total
        if recipe.variation:
            total = total + recipe.variation * total_variation(displacement).mean()
        return total

    return loss


def learning_rate(recipe: Recipe, step: int) -> float:
    """Of a step, 0 being the first: half a cosine, to a twentieth."""
    part = (1 + math.cos(math.pi * step / recipe.steps)) / 2
    return recipe.learning_rate * max(part, 0.05)


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
        self.on_gpu = device.type == "cuda" and graph
        self.rate = torch.zeros((), device=device)
        self.optimizer = torch.optim.Adam(
            network.parameters(), lr=self.rate, fused=True, capturable=self.on_gpu
        )
        self.number = torch.full((1,), start, device=device)
        self.taken, self.graph = 0, None
        self.total = torch.zeros((), device=device)  # of the losses

    def __call__(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"].fill_(rate)
        if self.graph is not None:
            self.graph.replay()
        elif self.on_gpu and self.taken == EAGER_STEPS:
            self.optimizer.zero_grad(set_to_none=True)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self._step()
            self.graph.replay()
        elif self.on_gpu:  # on another stream, as a graph's first steps have to be
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._step()
            torch.cuda.current_stream().wait_stream(stream)
        else:
            self._step()
        self.taken += 1

    def _step(self) -> None:
        moving, fixed = self.draw(self.number)
        loss = self.loss(moving, fixed, self.network(moving, fixed))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 2.0)
        self.optimizer.step()
        self.total += loss.detach()
        self.number += 1


def _train(recipe, network, held, draw, device, test, every, path) -> dict[str, Any]:
    network.to(device).to(memory_format=torch.channels_last).train()
    loss, curve = loss_of(recipe), list(held["curve"])
    step = Step(network, loss, draw, held["step"], device, recipe.model != "voxelmorph")
    if "optimizer" in held:
        step.optimizer.load_state_dict(held["optimizer"])
        for group in step.optimizer.param_groups:  # what the checkpoint has of another device
            group["lr"], group["capturable"] = step.rate, step.on_gpu
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


def predict(run: Run, pairs: Pairs) -> Tensor:
    """(P, 2, H, W), pair by pair on the CPU, as a user gets them."""
    fields = []
    with torch.inference_mode():
        for k in range(len(pairs)):
            fields.append(run.network(pairs.moving[k : k + 1], pairs.fixed[k : k + 1]))
    return torch.cat(fields).clone()


def moves_itself(run: Run, images: Tensor) -> float:
    """How far the network moves an image that it is given twice, at most, voxels.

    Args:
        run: of the network.
        images: (P, 1, H, W).
    """
    with torch.inference_mode():
        return max(float(run.network(x, x).abs().max()) for x in images.split(1))
