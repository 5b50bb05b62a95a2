"""`diffreg bench`: which rows are measured, and the file that they end up in."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from diffreg.benchmark import kept
from diffreg.benchmark.cases import CASES, FIELDS, Case, Draw
from diffreg.benchmark.network_rows import prediction_rows, threads_set, training_rows
from diffreg.benchmark.operators import measure, second_derivative
from diffreg.benchmark.overhead import call_overhead
from diffreg.benchmark.peers import missing
from diffreg.registration.provenance import processor

Row = dict[str, Any]
HEADLINE = ((1, 1, 256, 256), (16, 1, 256, 256), (4, 1, 512, 512))
# One image too small to fill a GPU, a batch, and one larger than its caches.
HEADLINE_GPU = ((1, 1, 256, 256), (16, 1, 256, 256), (16, 1, 2048, 2048))
HEADLINE_3D_GPU = ((1, 1, 160, 192, 224),)
SIZES = ((64, 1, 64, 64), (16, 1, 128, 128), (1, 1, 1024, 1024), (2, 1, 255, 257), (4, 3, 256, 256))
# Volumes, on the CPU, with memory kept. torch.compile may take minutes to be ready for them: its
# figures are of another run (kept.py).
HEADLINE_3D = ((1, 1, 96, 96, 96),)
SIZES_3D = ((4, 1, 32, 32, 32), (1, 1, 128, 160, 144), (1, 1, 63, 65, 66), (1, 3, 48, 48, 48))
QUICK_3D = (1, 1, 32, 32, 32)
SECOND_DERIVATIVES = ((1, 1, 128, 128), (1, 1, 32, 32, 32))  # bytes are counted, not timed
METHOD = (
    "Interleaved runs, medians; the spread is that of the middle half. One thread is timed by its "
    "own clock, several by the wall's. Best eager: the faster of two tuned forms in PyTorch, their "
    "constants made beforehand, half types in float32; torch.compile is of the form that it makes "
    "most of. A candidate that gives other results has no time. The share of a copy is the fewest "
    "bytes that the work has to move, over the time (on a GPU that in a CUDA graph of 16 calls), "
    "beside a copy of the same run (on a GPU x + 1, in such a graph, of as many bytes). Where a "
    "row does not say that memory is kept, the C library gives large blocks back to the system "
    "when they are freed. MiB held are those that torch's allocator gave out."
)
# A row. On a GPU runs are short, and hardly disturbed.
FULL_SECONDS, QUICK_SECONDS, GPU_SECONDS = 1.5, 0.7, 0.3


def run(quick: bool = False, device: str = "cpu", note: Callable[[str], None] = print) -> Row:
    """Measures everything.

    Args:
        quick: the operators on one batch and one small volume, LU-net's step and prediction, the
            overhead of a call: under 90 seconds on two cores. torch.compile, other sizes, dtypes
            and fields are left out.
        device: "cpu", where operators run on one thread and networks on all, or "cuda".
        note: told of every part that is about to be measured.

    Returns:
        The results, see schema.json.
    """
    threads = torch.get_num_threads()
    result: Row = {
        "machine": machine(device),
        "method": METHOD,
        "quick": quick,
        "not_installed": missing(),
    }
    try:
        torch.set_num_threads(1)
        result["operators"] = list(_operators(quick, device, note))
        if device == "cpu":
            note("overhead of a call")
            result["overhead"] = call_overhead(2.0 if quick else 10.0)
            result["threads"] = list(on_threads(threads, quick, note))
            note("second derivatives")
            result["second_derivatives"] = [
                second_derivative(case, Draw(shape))
                for case in CASES.values()
                for shape in SECOND_DERIVATIVES
            ]
    finally:
        torch.set_num_threads(threads)
    result["training"] = list(training_rows(quick, device, note))
    result["prediction"] = list(prediction_rows(quick, device, note))
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


class Planned(NamedTuple):
    """A draw, whether torch.compile runs on it, and whether memory is kept (see `measure`)."""

    draw: Draw
    compiled: bool = False
    kept: bool = False


def _plan(case: Case, quick: bool, device: str) -> Iterator[Planned]:
    """What a case is run on."""
    if quick:
        yield Planned(Draw(HEADLINE[1], device=device))
    else:
        yield from _images(case, device)
    if device == "cuda":
        yield from [Planned(Draw(shape, device=device), kept=True) for shape in HEADLINE_3D_GPU]
    else:
        yield from [Planned(Draw(QUICK_3D), kept=True)] if quick else _volumes(case)


def _images(case: Case, device: str) -> Iterator[Planned]:
    headline = HEADLINE_GPU if device == "cuda" else HEADLINE
    for shape in headline:
        # On a GPU compiling costs more than all else, and is done once an operator.
        yield Planned(Draw(shape, device=device), device == "cpu" or shape == headline[1])
    for shape in SIZES:
        yield Planned(Draw(shape, device=device))
    for dtype in (torch.float64, torch.bfloat16):
        yield Planned(Draw((4, 1, 256, 256), dtype, device))
    for field in FIELDS[1:] if case.has_field else ():
        yield Planned(Draw((4, 1, 256, 256), device=device, field=field))


def _volumes(case: Case) -> Iterator[Planned]:
    for shape in HEADLINE_3D:
        yield Planned(Draw(shape), kept=True)
        yield Planned(Draw(shape))  # what giving memory back costs
    for shape in SIZES_3D:
        yield Planned(Draw(shape), kept=True)
    for dtype in (torch.float64, torch.bfloat16):
        yield Planned(Draw((1, 1, 64, 64, 64), dtype), kept=True)
    for field in FIELDS[1:] if case.has_field else ():
        yield Planned(Draw((1, 1, 64, 64, 64), field=field), kept=True)


def _operators(quick: bool, device: str, note: Callable[[str], None]) -> Iterator[Row]:
    seconds = QUICK_SECONDS if quick else FULL_SECONDS if device == "cpu" else GPU_SECONDS
    figures = kept.load()
    for case in CASES.values():
        for draw, compile_too, in_process in _plan(case, quick, device):
            dtype = str(draw.dtype).removeprefix("torch.")
            field = f", {draw.field} field" if case.has_field else ""
            note(f"{case.name}: {'x'.join(map(str, draw.shape))}, {dtype}{field}")
            for backward in (False, True):
                try:
                    row = measure(
                        case, draw, backward, compile_too and backward, seconds, in_process
                    )
                except NotImplementedError as reason:
                    note(f"  left out: {reason}")
                    break
                _check_agreement(row)
                with_others = draw.dimensions == 3 and device == "cpu"
                yield kept.with_kept(row, figures) if with_others else row


def _check_agreement(row: Row) -> None:
    """Rounding sets single forms apart at some sizes; a headline has something to stand against.

    Raises:
        RuntimeError: no form in PyTorch gives what the operator gives.
    """
    shape = tuple(row["shape"])
    headline = shape in {*HEADLINE, *HEADLINE_GPU, *HEADLINE_3D, *HEADLINE_3D_GPU, QUICK_3D}
    if headline and row["speedup"]["best eager"] is None:
        size = "x".join(map(str, shape))
        raise RuntimeError(
            f"{row['operator']}, {size}: no form in PyTorch gives what diffreg gives"
        )


def on_threads(threads: int, quick: bool, note: Callable[[str], None]) -> Iterator[Row]:
    """What more threads give to one image, and to one volume: 1, 2, 4, ...; 1 and 2 when quick."""
    if threads < 2:
        note("threads are not compared: this run has one (OMP_NUM_THREADS sets how many)")
        return
    case = CASES["registration_objective"]
    volume = QUICK_3D if quick else HEADLINE_3D[0]
    numbers = [2**k for k in range(threads.bit_length())][: 2 if quick else None]
    for shape, in_process in (((1, 1, 512, 512), False), (volume, True)):
        note(f"registration_objective: {'x'.join(map(str, shape))} on {numbers} threads")
        for number in numbers * 2:  # by turns
            with threads_set(number):
                seconds = QUICK_SECONDS if quick else 4.0
                row = measure(case, Draw(shape), True, False, seconds, in_process)
            ns = row["nanoseconds_a_voxel"]
            eager = [value for name, value in ns.items() if name.startswith("eager")]
            yield {
                "shape": list(shape),
                "threads": number,
                "diffreg": ns["diffreg"],
                "eager": min(eager, default=None),
            }


def write(result: Row, folder: Path) -> list[Path]:
    """Writes the JSON, its Markdown table and its plot; the files appear whole or not at all."""
    from diffreg.benchmark.plots import plot
    from diffreg.benchmark.tables import markdown
    from diffreg.system.atomic import replacing

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
