"""`diffreg bench`: which rows are measured, and the file that they end up in."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from diffreg.benchmark.cases import CASES, Case, Draw
from diffreg.benchmark.network import file_to_file, prediction, training_step
from diffreg.benchmark.operators import measure
from diffreg.benchmark.overhead import call_overhead
from diffreg.benchmark.peers import missing
from diffreg.registration.provenance import processor

Row = dict[str, Any]
HEADLINE = ((1, 1, 256, 256), (16, 1, 256, 256), (4, 1, 512, 512))
# One image too small to fill a GPU, a batch, and one larger than its caches.
HEADLINE_GPU = ((1, 1, 256, 256), (16, 1, 256, 256), (16, 1, 2048, 2048))
SIZES = ((64, 1, 64, 64), (16, 1, 128, 128), (1, 1, 1024, 1024), (2, 1, 255, 257), (4, 3, 256, 256))
# A row. On a GPU runs are short, and hardly disturbed.
FULL_SECONDS, QUICK_SECONDS, GPU_SECONDS = 1.5, 0.7, 0.3


def run(quick: bool = False, device: str = "cpu", note: Callable[[str], None] = print) -> Row:
    """Measures everything.

    Args:
        quick: the operators on one batch, LU-net's step and prediction, the overhead of a call:
            under 90 seconds on two cores. torch.compile, other sizes, dtypes and fields are left
            out.
        device: "cpu", where operators run on one thread and networks on all, or "cuda".
        note: told of every part that is about to be measured.

    Returns:
        The results, see schema.json.
    """
    threads = torch.get_num_threads()
    result: Row = {"machine": machine(device), "quick": quick, "not_installed": missing()}
    try:
        torch.set_num_threads(1)
        result["operators"] = list(_operators(quick, device, note))
        if device == "cpu":
            note("overhead of a call")
            result["overhead"] = call_overhead(2.0 if quick else 10.0)
            result["second_thread"] = list(_second_thread(threads, quick, note))
    finally:
        torch.set_num_threads(threads)
    result["training"] = list(_training(quick, device, note))
    result["prediction"] = list(_prediction(quick, device, note))
    return result


def machine(device: str) -> Row:
    """What figures depend on."""
    from diffreg.ops._core import build_info

    core = build_info()
    packages = ("torch", "monai", "voxelmorph", "kornia", "opencv-python-headless", "scipy")
    return {
        "commit": _commit(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "cpu_variant": core["cpu_variant"],
        "cuda_architectures": core["cuda_architectures"],
        "versions": {name: found for name in packages if (found := _version(name))},
    }


def _commit() -> str:
    """Of the source folder that this runs from; of an installed package there is none."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        commit = git("rev-parse", "--short", "HEAD")
        # The pages of docs/ are what a run writes, not what it runs.
        changed = git("status", "--porcelain", "-uno", "--", ":(top)", ":(top,exclude)docs")
        return f"{commit}-dirty" if changed else commit
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _draws(case: Case, quick: bool, device: str) -> Iterator[tuple[Draw, bool]]:
    """What a case is run on, and whether torch.compile is part of it."""
    if quick:
        yield Draw(HEADLINE[1], device=device), False
        return
    headline = HEADLINE_GPU if device == "cuda" else HEADLINE
    for shape in headline:
        # On a GPU compiling costs more than all else, and is done once an operator.
        yield Draw(shape, device=device), device == "cpu" or shape == headline[1]
    for shape in SIZES:
        yield Draw(shape, device=device), False
    for dtype in (torch.float64, torch.bfloat16):
        yield Draw((4, 1, 256, 256), dtype, device), False
    for field in ("zero", "rough", "far") if case.has_field else ():
        yield Draw((4, 1, 256, 256), device=device, field=field), False


def _operators(quick: bool, device: str, note: Callable[[str], None]) -> Iterator[Row]:
    seconds = QUICK_SECONDS if quick else FULL_SECONDS if device == "cpu" else GPU_SECONDS
    for case in CASES.values():
        for draw, compiled in _draws(case, quick, device):
            dtype = str(draw.dtype).removeprefix("torch.")
            field = f", {draw.field} field" if case.has_field else ""
            note(f"{case.name}: {'x'.join(map(str, draw.shape))}, {dtype}{field}")
            for backward in (False, True):
                yield measure(case, draw, backward, compiled and backward, seconds)


def _second_thread(threads: int, quick: bool, note: Callable[[str], None]) -> Iterator[Row]:
    """What another thread gives to one image."""
    if threads < 2:
        return
    case, draw = CASES["registration_objective"], Draw((1, 1, 512, 512))
    note("registration_objective: 1x1x512x512 on two threads")
    for number in (1, 2, 1, 2):  # by turns
        torch.set_num_threads(number)
        row = measure(case, draw, True, seconds=QUICK_SECONDS if quick else 4.0)
        ns = row["nanoseconds_a_pixel"]
        yield {"threads": number, "diffreg": ns["diffreg"], "eager": ns.get("eager 1")}


def _training(quick: bool, device: str, note: Callable[[str], None]) -> Iterator[Row]:
    sizes = ((128, 8),) if quick else ((128, 8), (128, 32), (256, 8), (256, 32))
    for model in ("lunet",) if quick else ("lunet", "sn"):
        for size, batch in sizes:
            note(f"training step: {model}, {batch} pairs of {size}x{size}")
            compiled = batch == 8 and not quick and device == "cpu"
            seconds = 8.0 if compiled else 3.0
            yield training_step(model, size, batch, device, compiled, seconds)
            threads = torch.get_num_threads()
            if (size, batch, device) == (256, 8, "cpu") and threads > 1:
                torch.set_num_threads(1)
                yield training_step(model, size, batch, device, False, seconds)
                torch.set_num_threads(threads)


def _prediction(quick: bool, device: str, note: Callable[[str], None]) -> Iterator[Row]:
    for model in ("lunet",) if quick else ("lunet", "sn"):
        for batch in (1, 16):
            note(f"prediction: {model}, {batch} pairs of 256x256")
            yield prediction(model, 256, batch, device, 2.0 if quick else 5.0)
    if device == "cpu":
        note("prediction: lunet, 256x256, file to file")
        yield file_to_file(256, 3 if quick else 15)


def write(result: Row, folder: Path) -> list[Path]:
    """Writes the JSON, its Markdown table and its plot; the files appear whole or not at all."""
    from diffreg._files import replacing
    from diffreg.benchmark.tables import markdown, plot

    name = "benchmark_cuda" if result["machine"]["gpu"] else "benchmark"
    paths = [folder / f"{name}.{ending}" for ending in ("json", "md", "png")]
    contents = (
        lambda: f"{json.dumps(result, indent=1)}\n".encode(),
        lambda: markdown(result).encode(),
    )
    for path, made in zip(paths, (*contents, lambda: plot(result)), strict=True):
        with replacing(path) as temporary:
            temporary.write_bytes(made())
    return paths
