"""What a call costs that computes next to nothing: Python and checks, and the engine beneath."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from diffreg import ops
from diffreg.benchmark.timing import Run, interleaved

Row = dict[str, Any]


def call_overhead(seconds: float) -> list[Row]:
    """Microseconds of forward and backward on images of 4 x 4 voxels.

    "bare" is the registered operator itself, torch.ops.diffreg.*, which has work for less than a
    microsecond there, with its autograd by torch.library.register_autograd: the difference is what
    the function that users call adds, or saves by its short way to the kernel. "engine" is
    torch.mul, forward and backward, of torch's own C++.
    """
    image, fixed = torch.rand(2, 1, 1, 4, 4)
    warped = image.clone().requires_grad_()
    u = (0.1 * torch.rand(1, 2, 4, 4)).requires_grad_()
    eps = torch.full((1,), 0.1)
    bare = torch.ops.diffreg
    energy = [1.0, 1.0], "hyperelastic", 0.2
    calls: dict[str, tuple[Callable[[], Any], Callable[[], Any], torch.Tensor]] = {
        "warp": (
            lambda: ops.warp(image, u),
            lambda: bare.warp(image, u, "linear", "border"),
            u,
        ),
        "deformation_energy": (
            lambda: ops.deformation_energy(u).bending,
            lambda: bare.deformation_energy(u, *energy)[1],
            u,
        ),
        "parallel_level_sets": (
            lambda: ops.parallel_level_sets(warped, fixed, eps, eps),
            lambda: bare.parallel_level_sets(warped, fixed, eps, eps, "pls", None),
            warped,
        ),
        "correlation": (
            lambda: ops.correlation(warped, fixed),
            lambda: bare.correlation(warped, fixed, None)[0],
            warped,
        ),
        "local_correlation": (
            lambda: ops.local_correlation(warped, fixed),
            lambda: bare.local_correlation(warped, fixed, 9, None),
            warped,
        ),
        "mutual_information": (
            lambda: ops.mutual_information(warped, fixed),
            lambda: bare.mutual_information(warped, fixed, 32, None, None)[0],
            warped,
        ),
        "gradient_scale": (
            lambda: ops.gradient_scale(warped),
            lambda: bare.gradient_scale(warped, 1.0, None),
            warped,
        ),
        "jacobian_determinant": (
            lambda: ops.jacobian_determinant(u, "min"),
            lambda: bare.jacobian_determinant(u, "min"),
            u,
        ),
        "registration_objective": (
            lambda: (
                ops.registration_objective(
                    image, fixed, u, "pls", eps_moving=eps, eps_fixed=eps
                ).total
            ),
            lambda: bare.registration_objective(
                *(image, fixed, u, eps, eps, None),
                *([0.0, 0.0, 0.0, 1.0, 0.0, 0.0], [60.0, 1.0, 30.0, 3.0], "border"),
                *(*energy, True, False),
            )[0],
            u,
        ),
    }
    runs: dict[str, Run] = {"engine": _both(lambda: torch.mul(u, u), u)}
    for name, (function, registered, wanted) in calls.items():
        runs[name] = _both(function, wanted)
        runs[f"bare {name}"] = _both(registered, wanted)
    times = {name: 1e6 * t.median for name, t in interleaved(runs, "cpu", seconds, 1e-2).items()}
    return [
        {
            "operator": name,
            "microseconds": round(times[name], 1),
            "bare": round(times[f"bare {name}"], 1),
            "added": round(times[name] - times[f"bare {name}"], 1),
            "engine": round(times["engine"], 1),
        }
        for name in calls
    ]


def _both(function: Callable[[], torch.Tensor], wanted: torch.Tensor) -> Run:
    upstream = torch.ones_like(function().detach())
    return lambda: torch.autograd.grad(function(), wanted, upstream)
