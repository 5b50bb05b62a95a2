"""Interleaved timing of an operator against its plain PyTorch reference.

Forward, and forward plus backward, in one process, run by turns: median and spread, nanoseconds a
pixel, and gigabytes a second beside a copy in the same run. Results agree before a time is printed.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

import diffreg.ops

RESULTS = Path(__file__).parent / "results"
Inputs = tuple[torch.Tensor, ...]
Run = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Case:
    """One operator to be timed.

    Args:
        name: the operator.
        inputs: (samples, size) -> tensors; those that require a gradient are differentiated.
        operator, reference: functions of the inputs that return one tensor.
        bytes_forward, bytes_backward: fewest bytes a pixel that each has to move.
    """

    name: str
    inputs: Callable[[int, int], Inputs]
    operator: Run
    reference: Run
    bytes_forward: int
    bytes_backward: int


def smooth(samples: int, channels: int, size: int, amplitude: float, seed: int) -> torch.Tensor:
    """A smooth random image or field (N, C, size, size), largest value about `amplitude`."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(samples, channels, 8, 8, generator=generator)
    fine = F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    return (fine * (amplitude / fine.abs().max())).contiguous()


def image_pair(samples: int, size: int) -> Inputs:
    """A warped image that requires a gradient, and a fixed one."""
    warped = 0.5 + smooth(samples, 1, size, 0.5, seed=1)
    return warped.requires_grad_(), 0.5 + smooth(samples, 1, size, 0.5, seed=2)


def displacement(samples: int, size: int) -> torch.Tensor:
    """A smooth 3-voxel displacement that requires a gradient."""
    return smooth(samples, 2, size, 3.0, seed=3).requires_grad_()


def _forward_backward(run: Run, inputs: Inputs, upstream: torch.Tensor) -> Inputs:
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    return torch.autograd.grad(run(*inputs), wanted, upstream)


def _interleave(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return times


def _agree(case: Case, inputs: Inputs) -> torch.Tensor:
    """Raises unless operator and reference agree; the upstream gradient that showed it."""
    value = case.operator(*inputs)
    torch.testing.assert_close(value, case.reference(*inputs), rtol=1e-4, atol=1e-5)
    upstream = torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
    ours = _forward_backward(case.operator, inputs, upstream)
    theirs = _forward_backward(case.reference, inputs, upstream)
    for own, other in zip(ours, theirs, strict=True):
        # At a kink (a point on a voxel centre) rounding decides which side a derivative is of.
        apart = ~torch.isclose(own, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))
        if apart.float().mean() > 1e-3:
            raise AssertionError(f"{case.name}: {int(apart.sum())} gradients differ")
    return upstream


def measure(case: Case, samples: int, size: int, repeats: int) -> dict:
    """Times of the operator, its reference and a copy, on one shape."""
    inputs = case.inputs(samples, size)
    upstream = _agree(case, inputs)
    pixels = samples * size * size
    page = torch.rand(pixels)
    into = torch.empty_like(page)
    times = _interleave(
        {
            "copy": lambda: into.copy_(page),
            "operator_forward": lambda: case.operator(*inputs),
            "reference_forward": lambda: case.reference(*inputs),
            "operator_both": lambda: _forward_backward(case.operator, inputs, upstream),
            "reference_both": lambda: _forward_backward(case.reference, inputs, upstream),
        },
        repeats,
    )
    return {
        "operator": case.name,
        "shape": [samples, 1, size, size],
        **_summary(case, times, pixels),
    }


def _summary(case: Case, times: dict[str, list[float]], pixels: int) -> dict:
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    rate = {
        "copy": 8 * pixels / median["copy"],
        "operator_forward": case.bytes_forward * pixels / median["operator_forward"],
        "operator_both": (case.bytes_forward + case.bytes_backward)
        * pixels
        / median["operator_both"],
    }
    return {
        "nanoseconds_a_pixel": {name: 1e9 * s / pixels for name, s in median.items()},
        "spread": {
            name: (max(seconds) - min(seconds)) / median[name] for name, seconds in times.items()
        },
        "gigabytes_a_second": {name: value / 1e9 for name, value in rate.items()},
        "speedup_forward": median["reference_forward"] / median["operator_forward"],
        "speedup_both": median["reference_both"] / median["operator_both"],
    }


def machine() -> dict:
    """What a figure depends on."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    return {
        "commit": commit.stdout.strip() or "unknown",
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "torch": str(torch.__version__),
        "core": diffreg.ops._core.build_info(),
    }


def main(case: Case) -> None:
    """Command line of every bench/ops/bench_<op>.py: prints a table, writes JSON."""
    parser = argparse.ArgumentParser(description=f"Times {case.name} against plain PyTorch.")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for samples, size in ((1, 256), (16, 256), (4, 512)):
        row = measure(case, samples, size, options.repeats)
        rows.append(row)
        ns = row["nanoseconds_a_pixel"]
        print(
            f"{case.name:22} {samples:3} x {size}^2   forward {ns['operator_forward']:7.2f} ns a "
            f"pixel, {row['speedup_forward']:5.1f}x   forward + backward "
            f"{ns['operator_both']:7.2f} ns, {row['speedup_both']:5.1f}x"
        )
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / f"{case.name}.json"
    target.write_text(json.dumps({"machine": machine(), "results": rows}, indent=2) + "\n")
