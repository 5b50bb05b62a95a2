"""The whole objective (pls, scales given) against its plain PyTorch reference."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench_warp import grid_sample
from harness import Case, displacement, image_pair, main

from diffreg.ops import (
    deformation_energy_reference,
    parallel_level_sets_reference,
    registration_objective,
)
from diffreg.ops._objective import PRESETS

WEIGHTS = PRESETS["default"].weights
EPS = 0.02


def reference(moving, fixed, u):
    """What PyTorch's users write, their identity grid made beforehand."""
    warped = grid_sample(moving, u)
    terms = (
        parallel_level_sets_reference(warped, fixed, EPS, EPS),
        *deformation_energy_reference(u),
    )
    return sum(weight * term for weight, term in zip(WEIGHTS, terms, strict=True))


def inputs(samples, size):
    moving, fixed = image_pair(samples, size)
    return moving.detach(), fixed, displacement(samples, size)


CASE = Case(
    name="registration_objective",
    inputs=inputs,
    operator=lambda *x: registration_objective(*x, "pls", eps_moving=EPS, eps_fixed=EPS).total,
    reference=reference,
    bytes_forward=16,
    bytes_backward=24,
)

if __name__ == "__main__":
    main(CASE)
