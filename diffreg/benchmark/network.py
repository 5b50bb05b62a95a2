"""A training step and a prediction: what the network's settings give, and where a step's time goes.

Off a GPU the network is nearly all of a step, so that its memory order counts for more than our
operators do.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from diffreg.benchmark.cases import Draw
from diffreg.benchmark.timing import Run, interleaved
from diffreg.losses import Objective
from diffreg.models import build_model
from diffreg.validation import predictor

Row = dict[str, Any]


class Setting(NamedTuple):
    """How the network is run."""

    channels_last: bool = False
    bfloat16: bool = False
    compiled: bool = False


SETTINGS = {
    "contiguous": Setting(),
    "channels last (default)": Setting(channels_last=True),
    "channels last, bfloat16": Setting(channels_last=True, bfloat16=True),
}
COMPILED = {"channels last, torch.compile": Setting(channels_last=True, compiled=True)}


class Step:
    """A training step on drawn images, as the trainer takes it."""

    def __init__(self, model: str, setting: Setting, draw: Draw) -> None:
        self.moving, self.fixed = draw.image(1), draw.image(2)
        self.network = _network(model, setting, draw.device)
        running: Any = torch.compile(self.network) if setting.compiled else self.network
        precision = "bfloat16" if setting.bfloat16 else "float32"
        self.predict = predictor(running, torch.device(draw.device), precision)
        self.optimizer = torch.optim.Adam(self.network.parameters(), 1e-4)
        self.objective = Objective("ncc")

    def forward(self) -> Tensor:
        return self.predict(self.moving, self.fixed)

    def loss(self, displacement: Tensor) -> Tensor:
        return self.objective(self.moving, self.fixed, displacement, return_warped=False).total

    def loss_and_backward(self, displacement: Tensor) -> Tensor:
        """The objective alone, to a field that no network is behind."""
        field = displacement.detach().requires_grad_()
        return torch.autograd.grad(self.loss(field), field)[0]

    def __call__(self) -> None:
        loss = self.loss(self.forward())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def _network(model: str, setting: Setting, device: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_model(model).to(device)
    order: Any = torch.channels_last if setting.channels_last else torch.contiguous_format
    return network.to(memory_format=order)  # type: ignore[call-overload]


def training_step(
    model: str, size: int, batch: int, device: str, compiled: bool, seconds: float
) -> Row:
    """Milliseconds of a step under every setting, and the objective's share of one.

    Args:
        model: "lunet" or "sn".
        size, batch: of the images; one channel.
        device: "cpu" or "cuda".
        compiled: also under torch.compile, which takes a minute to be ready.
        seconds: about how long the timing may take.
    """
    draw = Draw((batch, 1, size, size), device=device)
    settings = SETTINGS | (COMPILED if compiled else {})
    steps = {name: Step(model, setting, draw) for name, setting in settings.items()}
    usual = steps["channels last (default)"]
    with torch.no_grad():
        field = usual.forward()
    runs: dict[str, Run] = {**steps, "objective": lambda: usual.loss_and_backward(field)}
    times = interleaved(runs, device, seconds)
    milliseconds = {name: round(1e3 * time.median, 2) for name, time in times.items()}
    share = times["objective"].median / times["channels last (default)"].median
    return {
        "model": model,
        "shape": list(draw.shape),
        "threads": torch.get_num_threads(),
        "milliseconds": milliseconds,
        "spread": {name: round(time.spread, 3) for name, time in times.items()},
        "objective_share": round(share, 4),
    }


def prediction(model: str, size: int, batch: int, device: str, seconds: float) -> Row:
    """Milliseconds a pair from images in memory to a displacement in memory."""
    draw = Draw((batch, 1, size, size), device=device)
    moving, fixed = draw.image(1), draw.image(2)
    runs: dict[str, Run] = {}
    for name, setting in SETTINGS.items():
        network = _network(model, setting, device).eval()
        runs[name] = _predicting(network, setting, moving, fixed)
    times = interleaved(runs, device, seconds)
    milliseconds = {name: round(1e3 * t.median / batch, 2) for name, t in times.items()}
    return {
        "model": model,
        "shape": list(draw.shape),
        "threads": torch.get_num_threads(),
        "milliseconds_a_pair": milliseconds,
        "spread": {name: round(time.spread, 3) for name, time in times.items()},
        "pairs_a_second": round(1e3 / milliseconds["channels last (default)"], 1),
    }


def _predicting(network: nn.Module, setting: Setting, moving: Tensor, fixed: Tensor) -> Run:
    def run() -> Tensor:
        with (
            torch.inference_mode(),
            torch.autocast(moving.device.type, torch.bfloat16, enabled=setting.bfloat16),
        ):
            return network(moving, fixed)

    return run


def file_to_file(size: int, repeats: int) -> Row:
    """Milliseconds a pair from NIfTI files to a written displacement, and with all other results.

    The command line's own path: reading, normalising, LU-net, writing. "results" is all that
    `diffreg register` leaves: warped image, inverse, metrics and the report with its pictures.
    """
    from diffreg.data.images import Normalization, read_image
    from diffreg.data.transforms import write_displacement
    from diffreg.registration import register, write_registration

    network = _network("lunet", SETTINGS["channels last (default)"], "cpu").eval()
    draw = Draw((1, 1, size, size))
    found: dict[str, list[float]] = {"displacement": [], "results": []}
    with tempfile.TemporaryDirectory() as folder:
        paths = [_write_image(Path(folder), draw, seed) for seed in (1, 2)]
        for _ in range(repeats + 1):
            begin = time.perf_counter()
            moving, fixed = (read_image(path) for path in paths)
            result = register(
                moving, fixed, network=network, normalization=Normalization(), similarity="ncc"
            )
            write_displacement(Path(folder) / "u.nii.gz", result.displacement, fixed)
            found["displacement"].append(time.perf_counter() - begin)
            write_registration(result, Path(folder) / "out")
            found["results"].append(time.perf_counter() - begin)
    medians = {name: 1e3 * float(np.median(times[1:])) for name, times in found.items()}
    return {
        "model": "lunet",
        "shape": list(draw.shape),
        "threads": torch.get_num_threads(),
        "milliseconds_a_pair": {name: round(value, 1) for name, value in medians.items()},
    }


def _write_image(folder: Path, draw: Draw, seed: int) -> Path:
    import nibabel

    path = folder / f"image{seed}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(draw.image(seed)[0, 0].numpy()[..., None], np.eye(4)), path)
    return path
