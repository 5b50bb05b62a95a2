"""A training step: what the network's settings give, where its time goes, and what it holds.

Off a GPU the network is nearly all of a step, so that its memory order counts for more than our
operators do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffreg import ops
from diffreg.benchmark import baselines
from diffreg.benchmark.cases import Draw
from diffreg.benchmark.counting import peak_mebibytes
from diffreg.benchmark.timing import Graph, Run, Time, interleaved
from diffreg.data.augmentation import Augmentation
from diffreg.data.pairs import PairDataset, find_pairs
from diffreg.losses.presets import PRESETS
from diffreg.models import build_model, memory_order
from diffreg.system.memory import kept_memory
from diffreg.training import Trainer
from diffreg.training.config import Config
from diffreg.training.log_ring import READ_EVERY
from diffreg.training.validation import predictor

Row = dict[str, Any]


class Setting(NamedTuple):
    """How the network is run; `eager`: nothing of ours but its layers; `graph`: a CUDA graph."""

    channels_last: bool = False
    bfloat16: bool = False
    compiled: bool = False
    eager: bool = False
    graph: bool = False
    half_resolution: bool = False


ALONE, USUAL = "PyTorch alone", "channels last, memory kept (default)"
# Under torch's and the C library's own memory settings, then as the trainer has them.
SETTINGS = {
    ALONE: Setting(eager=True),
    "contiguous": Setting(),
    "channels last": Setting(channels_last=True),
}
KEPT = {
    USUAL: Setting(channels_last=True),
    "channels last, bfloat16": Setting(channels_last=True, bfloat16=True),
}
COMPILED = {"channels last, torch.compile": Setting(channels_last=True, compiled=True)}
GRAPHED = "channels last, bfloat16, in a graph"
GRAPHS = {
    "channels last, in a graph": Setting(channels_last=True, graph=True),
    GRAPHED: Setting(channels_last=True, bfloat16=True, graph=True),
}
NETWORK = "the network alone, bfloat16, in a graph"
# With drawing and log, as `diffreg train` does it.
TRAINER = "the trainer"
TRAINERS: dict[str, dict[str, Any]] = {
    TRAINER: {},
    "the trainer, bfloat16": {"precision": "bfloat16"},
    "the trainer without graphs": {"graph": False},
}


class Step:
    """A training step on drawn images, as the trainer takes it, and its parts."""

    def __init__(self, model: str, setting: Setting, draw: Draw) -> None:
        self.moving, self.fixed = draw.image(1), draw.image(2)
        self.network = fresh_network(model, setting, draw.device, draw.dimensions)
        if setting.eager:
            self.network.doubled = _torch_doubled  # type: ignore[assignment]
        running: Any = torch.compile(self.network) if setting.compiled else self.network
        precision = "bfloat16" if setting.bfloat16 else "float32"
        self.predict = predictor(running, torch.device(draw.device), precision)
        fused, capturable = not setting.eager, setting.graph
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), 1e-4, fused=fused, capturable=capturable
        )
        self.objective = _eager_objective if setting.eager else _fused_objective
        with torch.no_grad():
            self.field = self.forward()

    def forward(self) -> Tensor:
        return self.predict(self.moving, self.fixed)

    def loss(self, displacement: Tensor) -> Tensor:
        return self.objective(self.moving, self.fixed, displacement)

    def loss_and_backward(self) -> Tensor:
        """The objective alone, to a field that no network is behind."""
        field = self.field.detach().requires_grad_()
        return torch.autograd.grad(self.loss(field), field)[0]

    def logged(self) -> Tensor:
        """The determinants of the log."""
        return ops.jacobian_determinant(self.field, reduce="min").min()

    def __call__(self) -> None:
        loss = self.loss(self.forward())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class NetworkStep(Step):
    """The network's own forward and backward pass, without objective and Adam."""

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.forward().backward(self.field)


def _torch_doubled(image: Tensor) -> Tensor:
    mode = "bilinear" if image.ndim == 4 else "trilinear"
    return F.interpolate(image, scale_factor=2.0, mode=mode, align_corners=False)


def _fused_objective(moving: Tensor, fixed: Tensor, displacement: Tensor) -> Tensor:
    return ops.registration_objective(moving, fixed, displacement, "ncc").total.mean()


def _eager_objective(moving: Tensor, fixed: Tensor, displacement: Tensor) -> Tensor:
    similarity, *others = PRESETS["default"].weights
    warp, _ = baselines.warp_forms(displacement.detach())
    energies = baselines.energies_by_norms(displacement)
    measured = baselines.correlation_by_sums(warp(moving, displacement), fixed)
    terms = zip(others, energies, strict=True)
    return (similarity * measured + sum(weight * term for weight, term in terms)).mean()


def fresh_network(model: str, setting: Setting, device: str, dimensions: int = 2) -> nn.Module:
    half = setting.half_resolution
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = build_model(model, dimensions=dimensions, half_resolution=half).to(device)
    order: Any = memory_order(dimensions, setting.channels_last)
    return network.to(memory_format=order)  # type: ignore[call-overload]


class TrainerSteps:
    """Steps of `diffreg.training.Trainer`, drawing and log included.

    Args:
        model: "lunet" or "sn".
        dataset: to draw from.
        batch: pairs a step.
        device: "cpu" or "cuda".
        half_resolution: of the network.
        settings: of [training], beside these.
    """

    def __init__(
        self,
        model: str,
        dataset: PairDataset,
        batch: int,
        device: str,
        half_resolution: bool = False,
        **settings: Any,
    ) -> None:
        dimensions = dataset.sample(0).fixed.ndim - 2
        training = {"steps": 10**9, "batch_size": batch, "device": device, **settings}
        sections: dict[str, Any] = {
            "model": {"name": model, "dimensions": dimensions, "half_resolution": half_resolution},
            "objective": {"similarity": "ncc"},
            "training": training,
        }
        self.calls = READ_EVERY if device == "cuda" else 1
        self.trainer = Trainer(Config.from_dict(sections), dataset, progress=False)
        if device == "cuda":
            self.trainer.take(READ_EVERY)  # with the captures

    def __call__(self) -> None:
        self.trainer.take(self.calls)


def training_step(
    model: str,
    size: int,
    batch: int,
    device: str,
    compiled: bool,
    seconds: float,
    dimensions: int = 2,
    half_resolution: bool = False,
) -> Row:
    """Milliseconds of a step under every setting, what it holds, and where the time of two goes.

    Args:
        model: "lunet" or "sn".
        size, batch: of the images, along each axis; one channel.
        device: "cpu" or "cuda".
        compiled: also under torch.compile, which takes a minute to be ready.
        seconds: about how long the timing may take.
        dimensions: 2, or 3 for volumes.
        half_resolution: of the network's displacement.
    """
    draw = Draw((batch, 1, *[size] * dimensions), device=device)
    alone = _steps(model, SETTINGS, draw, half_resolution)
    runs: dict[str, Run] = {**alone, **_parts(ALONE, alone[ALONE])}
    times = interleaved(runs, device, seconds / 2)
    kept = KEPT | (COMPILED if compiled else {})
    with kept_memory(), drawn_pairs(size, dimensions) as dataset:
        steps = _steps(model, kept, draw, half_resolution)
        runs = {**steps, **_parts(USUAL, steps[USUAL])}
        runs[f"{USUAL}: drawing the batch"] = lambda: dataset.batch(range(batch), device)
        for name, settings in (TRAINERS if device == "cuda" else {TRAINER: {}}).items():
            runs[name] = TrainerSteps(model, dataset, batch, device, half_resolution, **settings)
        if device == "cuda":
            graphs = _steps(model, GRAPHS, draw, half_resolution)
            alone_in_graph = GRAPHS[GRAPHED]._replace(half_resolution=half_resolution)
            graphs[NETWORK] = NetworkStep(model, alone_in_graph, draw)
            runs |= {name: Graph(step, calls=1) for name, step in graphs.items()}
        times |= interleaved(runs, device, seconds / 2)
    measured = {name: time for name, time in times.items() if ": " not in name}
    return {
        "model": model,
        "shape": list(draw.shape),
        "half_resolution": half_resolution,
        "threads": torch.get_num_threads(),
        "milliseconds": {name: round(1e3 * time.median, 2) for name, time in measured.items()},
        "spread": {name: round(time.spread, 3) for name, time in measured.items()},
        "shares": {name: _shares(name, times) for name in (ALONE, USUAL)},
        "peak_mebibytes": _peaks(alone | steps, device),
    }


def _steps(model: str, settings: Mapping[str, Setting], draw: Draw, half: bool) -> dict[str, Step]:
    return {n: Step(model, s._replace(half_resolution=half), draw) for n, s in settings.items()}


def step_memory(row: Row) -> dict[str, float]:
    """The peaks alone of a row's step, on a CPU, without torch.compile."""
    half = row.get("half_resolution", False)
    steps = _steps(row["model"], SETTINGS | KEPT, Draw(tuple(row["shape"])), half)
    for step in steps.values():
        step()  # Adam makes its moments
    return _peaks(steps, "cpu")


def _peaks(steps: Mapping[str, Step], device: str) -> dict[str, float]:
    """Above the weights, the images and Adam's moments: gradients are the step's."""
    for step in steps.values():
        step.optimizer.zero_grad()
    return peak_mebibytes(steps, device)


def _parts(name: str, step: Step) -> dict[str, Run]:
    parts: dict[str, Run] = {
        "network, forward": step.forward,
        "objective": step.loss_and_backward,
        "Adam": step.optimizer.step,
        "determinants of the log": step.logged,
    }
    return {f"{name}: {part}": run for part, run in parts.items()}


def _shares(name: str, times: Mapping[str, Time]) -> dict[str, float]:
    """Each part over the whole; the network's backward pass is what the others leave of the step.

    The whole is the step with what the trainer does beside it: drawing and the log.
    """
    step = times[name].median
    parts = {
        part.partition(": ")[2]: t.median
        for part, t in times.items()
        if part.startswith(f"{name}: ")
    }
    within = ("network, forward", "objective", "Adam")
    parts["network, backward"] = step - sum(parts[part] for part in within)
    whole = sum(parts.values())
    return {part: round(value / whole, 4) for part, value in parts.items()}


@contextmanager
def drawn_pairs(size: int, dimensions: int) -> Iterator[PairDataset]:
    """Pairs that are bent, mirrored and cropped to that size."""
    crop = (size,) * dimensions
    augmentation = Augmentation(amplitude=1.0, flip_axes=tuple(range(dimensions)), crop=crop)
    with tempfile.TemporaryDirectory() as folder:
        larger = Draw((1, 1, *(side + 16 for side in crop)))
        images = [Path(folder) / f"image{seed}.npz" for seed in range(4)]
        for seed, path in enumerate(images):
            np.savez(path, larger.image(seed)[0, 0].numpy())
        pairs = find_pairs(images, dimensions=dimensions)
        yield PairDataset(pairs, augmentation=augmentation)
