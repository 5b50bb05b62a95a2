"""A prediction: from images in memory, under a network's settings, and from file to file."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffreg.benchmark.cases import Draw
from diffreg.benchmark.counting import peak_mebibytes
from diffreg.benchmark.network import Setting, fresh_network
from diffreg.benchmark.timing import Run, interleaved

Row = dict[str, Any]
USUAL = "channels last (default)"
SETTINGS = {
    "contiguous": Setting(),
    USUAL: Setting(channels_last=True),
    "channels last, bfloat16": Setting(channels_last=True, bfloat16=True),
}


def prediction(
    model: str,
    size: int,
    batch: int,
    device: str,
    seconds: float,
    dimensions: int = 2,
    half_resolution: bool = False,
) -> Row:
    """Milliseconds a pair from images in memory to a displacement in memory, and what it holds.

    Args:
        model: "lunet" or "sn".
        size, batch: of the images, along each axis; one channel.
        device: "cpu" or "cuda".
        seconds: about how long the timing may take.
        dimensions: 2, or 3 for volumes.
        half_resolution: of the network's displacement.
    """
    draw = Draw((batch, 1, *[size] * dimensions), device=device)
    runs = _predictions(model, draw, half_resolution)
    times = interleaved(runs, device, seconds)
    milliseconds = {name: round(1e3 * t.median / batch, 2) for name, t in times.items()}
    return {
        "model": model,
        "shape": list(draw.shape),
        "half_resolution": half_resolution,
        "threads": torch.get_num_threads(),
        "milliseconds_a_pair": milliseconds,
        "spread": {name: round(time.spread, 3) for name, time in times.items()},
        "pairs_a_second": round(1e3 / milliseconds[USUAL], 1),
        "peak_mebibytes": peak_mebibytes(runs, device),
    }


def prediction_memory(row: Row) -> dict[str, float]:
    """The peaks alone of a row's prediction, on a CPU."""
    half = row.get("half_resolution", False)
    runs = _predictions(row["model"], Draw(tuple(row["shape"])), half)
    for run in runs.values():
        run()
    return peak_mebibytes(runs)


def _predictions(model: str, draw: Draw, half: bool) -> dict[str, Run]:
    moving, fixed = draw.image(1), draw.image(2)
    runs: dict[str, Run] = {}
    for name, plain in SETTINGS.items():
        setting = plain._replace(half_resolution=half)
        network = fresh_network(model, setting, draw.device, draw.dimensions).eval()
        runs[name] = _predicting(network, setting, moving, fixed)
    return runs


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

    network = fresh_network("lunet", SETTINGS[USUAL], "cpu").eval()
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
