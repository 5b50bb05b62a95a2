"""Whether an operator became slower than at a parent commit: both libraries in one process.

    python bench/guard.py             # against the commit where main was left; on main, HEAD~1
    python bench/guard.py --against HEAD~3 --volumes --only warp energies

The parent's csrc is taken from git and built by its own CMakeLists.txt, with its operators under
another name (build/guard, kept). Values are compared first. Then each row is the best of many
turns, in CPU time of one thread with freed memory kept; one that is worse than 1.05 times the
parent is measured again. Exit status 1 where it stays worse or a value differs, 2 where there is
nothing to compare with.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

import diffreg.ops
from diffreg.ops._core import CPU_VARIANT
from diffreg.system.memory import kept_memory

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "build" / "guard"
WORSE, ATTEMPTS = 1.05, 4
TOLERANCE = 1e-4  # of the largest value: another order of rounding is allowed

Tensors = tuple[torch.Tensor, ...]


class NothingToCompare(Exception):
    """In words that end the program."""


def git(*arguments: str) -> bytes:
    if shutil.which("git") is None:
        raise NothingToCompare("git was not found: the parent commit cannot be read")
    run = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True)
    if run.returncode:
        raise NothingToCompare(f"git {' '.join(arguments)}: {run.stderr.decode().strip()}")
    return run.stdout


def parent_of_head() -> str:
    """Where main was left; on main itself, the commit before."""
    head = git("rev-parse", "HEAD").decode().strip()
    try:
        base = git("merge-base", "HEAD", "main").decode().strip()
    except NothingToCompare:
        base = head
    return base if base != head else "HEAD~1"


def library_of(commit: str) -> tuple[str, Path]:
    """Its name for torch, and the path of the CPU library, built unless it was before."""
    sha = git("rev-parse", "--verify", f"{commit}^{{commit}}").decode().strip()
    name = f"diffreg_{sha[:12]}"
    source, build = KEPT / f"{name}-source", KEPT / f"{name}-{CPU_VARIANT}"
    library = build / f"_cpu_{CPU_VARIANT}.so"
    if library.exists():
        return name, library
    wanted = git("archive", sha, "csrc", "cmake", "CMakeLists.txt", "diffreg/ops")
    source.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(wanted)) as archive:
        archive.extractall(source, filter="data")
    print(f"building {commit} ({sha[:12]}), a minute", file=sys.stderr, flush=True)
    build_library(source, build, name)
    return name, library


def build_library(source: Path, build: Path, name: str) -> None:
    """Builds the variant that is loaded here, every `diffreg` of its source renamed."""
    for tool in ("cmake", "ninja", "c++"):
        if shutil.which(tool) is None:
            raise NothingToCompare(f"{tool} was not found: the parent cannot be built")
    configure = [
        *("cmake", "-S", str(source), "-B", str(build), "-G", "Ninja", "-DDIFFREG_CUDA=off"),
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={build}",
        f"-DCMAKE_CXX_FLAGS=-Ddiffreg={name}",
        f"-DDIFFREG_TORCH_DIR={Path(torch.__file__).parent}",
    ]
    for command in (configure, ["cmake", "--build", str(build), "--target", f"_cpu_{CPU_VARIANT}"]):
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            told = (run.stdout + run.stderr).strip().splitlines()[-15:]
            raise NothingToCompare("the parent does not build:\n" + "\n".join(told))


class Draw:
    """Random inputs of a row, images with texture and smooth fields: never zeros."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.samples, self.size = shape[0], shape[1:]
        self.generator = torch.Generator().manual_seed(0)

    @property
    def axes(self) -> int:
        return len(self.size)

    def image(self) -> torch.Tensor:
        noise = torch.rand(self.samples, 1, *self.size, generator=self.generator)
        return 0.5 + self._smooth(1, 0.4) + 0.1 * noise

    def field(self) -> torch.Tensor:
        return self._smooth(self.axes, 3.0)

    def like(self, value: torch.Tensor) -> torch.Tensor:
        return torch.randn(value.shape, generator=self.generator)

    def _smooth(self, channels: int, amplitude: float) -> torch.Tensor:
        coarse = torch.randn(self.samples, channels, *[8] * self.axes, generator=self.generator)
        mode = {2: "bilinear", 3: "trilinear"}[self.axes]
        fine = F.interpolate(coarse, size=self.size, mode=mode, align_corners=True)
        return (fine * (amplitude / fine.abs().max())).contiguous()


@dataclass(frozen=True)
class Row:
    """One operator, called without autograd.

    Args:
        inputs: of a draw.
        forward: of (operators, *inputs), the values.
        backward: of (operators, upstream gradients, values, *inputs), the gradients.
    """

    inputs: Callable[[Draw], Tensors]
    forward: Callable[..., Tensors]
    backward: Callable[..., Tensors] | None = None


def rows() -> dict[str, Row]:
    found = {
        "warp": _warp(False),
        "warp, to moving too": _warp(True),
        "energies": Row(
            lambda draw: (draw.field(),),
            lambda ops, u: ops.deformation_energy(u, [1.0] * (u.dim() - 2), "hyperelastic", 0.2),
            lambda ops, g, _, u: (
                ops.deformation_energy_backward(*g, u, [1.0] * (u.dim() - 2), "hyperelastic", 0.2),
            ),
        ),
        "level sets": Row(
            lambda draw: (draw.image(), draw.image(), torch.full((draw.samples,), 0.02)),
            lambda ops, w, r, e: (ops.parallel_level_sets(w, r, e, e, "pls", None),),
            lambda ops, g, _, w, r, e: ops.parallel_level_sets_backward(
                *g, w, r, e, e, "pls", None, True, False
            ),
        ),
        "local correlation": Row(
            lambda draw: (draw.image(), draw.image()),
            lambda ops, w, r: (ops.local_correlation(w, r, 9, None),),
            lambda ops, g, _, w, r: ops.local_correlation_backward(*g, w, r, 9, None, True, False),
        ),
        "correlation": Row(
            lambda draw: (draw.image(), draw.image()),
            lambda ops, w, r: ops.correlation(w, r, None),
            lambda ops, g, v, w, r: ops.correlation_backward(g[0], v[1], w, r, None, True, False),
        ),
        "gradient scale": Row(
            lambda draw: (draw.image(),),
            lambda ops, image: (ops.gradient_scale(image, 1.0, None),),
            lambda ops, g, _, image: (ops.gradient_scale_backward(*g, image, 1.0, None),),
        ),
        "objective": _objective(False),
        "objective, gradient": _objective(True),
    }
    for reduce in ("none", "min", "mean", "bound"):
        found[f"determinants, {reduce}"] = _determinants(reduce)
    return found


def _warp(to_moving: bool) -> Row:
    how = "linear", "border"
    return Row(
        lambda draw: (draw.image(), draw.field()),
        lambda ops, image, u: (ops.warp(image, u, *how),),
        lambda ops, g, _, image, u: ops.warp_backward(*g, image, u, *how, to_moving, True),
    )


def _determinants(reduce: str) -> Row:
    return Row(
        lambda draw: (draw.field(),),
        lambda ops, u: (ops.jacobian_determinant(u, reduce),),
        None
        if reduce == "bound"
        else lambda ops, g, _, u: (ops.jacobian_determinant_backward(*g, u, reduce),),
    )


def _objective(need_gradient: bool) -> Row:
    def forward(ops, moving, fixed, u, eps):
        mixture, weights = [0.0, 0.0, 0.0, 1.0, 0.0, 0.0], [60.0, 1.0, 30.0, 3.0]
        options = "border", [1.0] * (u.dim() - 2), "hyperelastic", 0.2
        inputs = moving, fixed, u, eps, eps, None
        return ops.registration_objective(*inputs, mixture, weights, *options, need_gradient, False)

    return Row(
        lambda draw: (
            *(draw.image(), draw.image(), draw.field()),
            torch.full((draw.samples,), 0.02),
        ),
        forward,
    )


def called(ops, row: Row, inputs: Tensors, upstream: Tensors) -> Callable[[bool], Tensors]:
    """The row's work, with or without its gradient."""

    def call(with_gradient: bool) -> Tensors:
        values = row.forward(ops, *inputs)
        if not with_gradient:
            return values
        assert row.backward is not None
        return (*values, *row.backward(ops, upstream[: len(values)], values, *inputs))

    return call


def apart(ours: Tensors, theirs: Tensors) -> float:
    """The largest difference over the largest value; 0 for the same bits."""
    worst = 0.0
    for one, other in zip(ours, theirs, strict=True):
        if one.numel() and not torch.equal(one, other):
            largest = max(other.abs().max().item(), 1e-30)
            worst = max(worst, (one - other).abs().max().item() / largest)
    return worst


def best_of_turns(calls: list[Callable[[], object]], seconds: float) -> list[float]:
    """The best CPU time of each but for an eighth: a virtual machine's clock may lose some."""
    times: list[list[float]] = [[] for _ in calls]
    end = time.thread_time() + seconds
    while len(times[0]) < 8 or time.thread_time() < end:
        for k in range(len(calls)) if len(times[0]) % 2 else reversed(range(len(calls))):
            begin = time.thread_time()
            calls[k]()
            times[k].append(time.thread_time() - begin)
    return [sorted(each)[len(each) // 8] for each in times]


@dataclass
class Result:
    """Nanoseconds of a voxel, now and at the parent (None: it has no such operator)."""

    name: str
    shape: tuple[int, ...]
    with_gradient: bool
    ours: float
    theirs: float | None
    apart: float

    def failed(self) -> bool:
        slower = self.theirs is not None and self.ours > WORSE * self.theirs
        return slower or not self.apart <= TOLERANCE

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        passes = "forward + backward" if self.with_gradient else "forward"
        head = f"{self.name:22} {size:14} {passes:18} {self.ours:8.2f}"
        if self.theirs is None:
            return f"{head}        -       -  new"
        note = "same bits" if self.apart == 0 else f"{self.apart:.0e} apart"
        end = "  FAILED" if self.failed() else ""
        return f"{head} {self.theirs:8.2f} {self.ours / self.theirs:7.2f}  {note}{end}"


def measured(name: str, row: Row, parent, shape: tuple[int, ...], seconds: float) -> list[Result]:
    draw = Draw(shape)
    inputs = row.inputs(draw)
    upstream = tuple(draw.like(v) for v in row.forward(torch.ops.diffreg, *inputs))
    ours = called(torch.ops.diffreg, row, inputs, upstream)
    theirs = called(parent, row, inputs, upstream)
    voxels = torch.Size(shape).numel()
    results = []
    for with_gradient in (False, True) if row.backward else (False,):
        calls = [lambda: ours(with_gradient), lambda: theirs(with_gradient)]  # noqa: B023
        try:
            difference = apart(calls[0](), calls[1]())
        except (RuntimeError, AttributeError):  # its operator had another schema, or other shapes
            difference, calls = 0.0, calls[:1]
        times = [float("inf")] * len(calls)
        for _ in range(ATTEMPTS):
            found = best_of_turns(calls, seconds)
            times = [min(pair) for pair in zip(times, found, strict=True)]
            each = [1e9 * t / voxels for t in times]
            result = Result(
                name, shape, with_gradient, each[0], each[1] if len(each) > 1 else None, difference
            )
            if not result.failed():
                break
        results.append(result)
        print(result, flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--against", metavar="COMMIT", help="default: where main was left")
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose names begin so")
    parser.add_argument("--volumes", action="store_true", help="3-D rows, too")
    parser.add_argument("--seconds", type=float, default=0.5, help="of a row's turns")
    options = parser.parse_args()
    try:
        if ROOT not in Path(diffreg.ops.__file__).parents:
            raise NothingToCompare(f"diffreg is imported from elsewhere: PYTHONPATH={ROOT}")
        name, library = library_of(options.against or parent_of_head())
    except NothingToCompare as reason:
        print(f"guard: {reason}", file=sys.stderr)
        raise SystemExit(2) from None
    ctypes.CDLL(str(library))
    torch.set_num_threads(1)
    shapes: list[tuple[int, ...]] = [(16, 256, 256)]
    if options.volumes:
        shapes.append((1, 96, 96, 96))
    print(f"{'ns a voxel, ' + CPU_VARIANT:56} {'now':>8} {'parent':>8} {'ratio':>7}")
    with kept_memory():
        results = [
            result
            for shape in shapes
            for row_name, row in rows().items()
            if row_name.startswith(tuple(options.only))
            for result in measured(row_name, row, getattr(torch.ops, name), shape, options.seconds)
        ]
    failed = [result for result in results if result.failed()]
    print(f"{len(failed)} of {len(results)} rows failed")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
