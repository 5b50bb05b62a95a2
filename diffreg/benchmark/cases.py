"""What is timed: each operator with its inputs, the eager forms it is held against, and its roof.

A new operator is a new line of CASES.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from diffreg import ops
from diffreg.benchmark import baselines, peers
from diffreg.losses.presets import PRESETS

Tensors = tuple[torch.Tensor, ...]
Function = Callable[..., Any]  # of tensors, one or several
FIELDS = ("smooth", "zero", "rough", "far")


@dataclass(frozen=True)
class Draw:
    """Inputs of one row.

    Args:
        shape: (N, C, *S), of images or volumes.
        dtype, device: of all tensors.
        field: a displacement that is "smooth" (3 voxels), "zero", "rough" (white noise of a voxel:
            it folds) or "far" (most of it outside the image).
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    field: str = "smooth"

    @property
    def dimensions(self) -> int:
        return len(self.shape) - 2

    @property
    def voxels(self) -> int:
        """Of all samples."""
        return self.shape[0] * math.prod(self.shape[2:])

    def image(self, seed: int) -> torch.Tensor:
        """Smooth, in [0, 1]."""
        return self._placed(0.5 + smooth(self.shape, 0.5, seed, self.device))

    def displacement(self) -> torch.Tensor:
        """(N, D, *S)."""
        samples, _, *size = self.shape
        shape = samples, self.dimensions, *size
        # Whole numbers lead from voxel to voxel, where a derivative has two values.
        far = 2.0 * max(size) - 1e-3
        reach = {"smooth": 3.0 - 1e-3, "zero": 0.0, "rough": 1.0, "far": far}[self.field]
        if self.field == "rough":
            noise = torch.rand(shape, generator=torch.Generator().manual_seed(3))
            return self._placed(reach * (2 * noise - 1))
        return self._placed(smooth(shape, reach, 3, self.device))

    def _placed(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self.device, self.dtype)


def smooth(
    shape: tuple[int, ...], amplitude: float, seed: int, device: str = "cpu"
) -> torch.Tensor:
    """Random, of features an eighth of the image wide; largest value `amplitude`."""
    axes = range(2, len(shape))
    generator = torch.Generator().manual_seed(seed)
    fine = torch.randn(*shape[:2], *(8 for _ in axes), generator=generator).to(device)
    for axis in axes:  # cubic along one after the other: torch has it for images alone
        rows = fine.movedim(axis, -1)
        page = rows.reshape(1, 1, -1, rows.shape[-1])
        size = page.shape[2], shape[axis]
        page = F.interpolate(page, size=size, mode="bicubic", align_corners=False)
        fine = page.reshape(*rows.shape[:-1], shape[axis]).movedim(-1, axis)
    return (fine * (amplitude / fine.abs().max())).contiguous()


def as_tensors(value: Any) -> Tensors:
    """What a function of a case returns, as a tuple."""
    return (value,) if isinstance(value, torch.Tensor) else tuple(value)


def _field(draw: Draw) -> Tensors:
    return (draw.displacement().requires_grad_(),)


def _moving_and_field(draw: Draw) -> Tensors:
    return draw.image(1), draw.displacement().requires_grad_()


def _moving_and_map(draw: Draw) -> Tensors:
    """A turn of 0.1 in the plane of the first two axes, and a shift of 1.3 voxels.

    Neither is a fraction: no point is a voxel's centre, where a derivative has two values.
    """
    matrix = torch.eye(draw.dimensions, draw.dimensions + 1, dtype=torch.float64)
    turn, shift = 0.3 / math.pi, 4 / math.pi
    matrix[0, 1], matrix[1, 0], matrix[:, -1] = turn, -turn, shift
    matrix = matrix.repeat(draw.shape[0], 1, 1).to(draw.device)
    return draw.image(1), matrix.requires_grad_()


def _pair(draw: Draw) -> Tensors:
    return draw.image(1).requires_grad_(), draw.image(2)


def _image(draw: Draw) -> Tensors:
    return (draw.image(1).requires_grad_(),)


def _everything(draw: Draw) -> Tensors:
    return draw.image(1), draw.image(2), draw.displacement().requires_grad_()


@dataclass(frozen=True)
class Case:
    """One operator, with one choice of its options.

    Args:
        name: of the operator, and what is chosen where there is more than one case of it.
        inputs: what it takes; those that require a gradient are differentiated.
        ours: the operator.
        eager: of the inputs, the same in PyTorch, in the forms that are tried.
        bytes: of channels and dimensions, the fewest that a voxel of float32 costs forward, and
            forward and backward.
        peers: of inputs, libraries on the same work.
        has_field: whether the kind of displacement matters.
        compiled: of the inputs, the form that torch.compile makes most of; None: the first eager.
        operator: None where it is the name.
    """

    name: str
    inputs: Callable[[Draw], Tensors]
    ours: Function
    eager: Callable[[Tensors], Sequence[Function]]
    bytes: Callable[[int, int], tuple[int, int]]
    peers: Callable[[torch.Tensor], dict[str, Function]] = lambda _: {}
    has_field: bool = False
    compiled: Callable[[Tensors], Function] | None = None
    operator: str | None = None

    def to_compile(self, inputs: Tensors) -> Function:
        return self.eager(inputs)[0] if self.compiled is None else self.compiled(inputs)


@functools.cache
def _scale(samples: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Edge scales, made once: a user who calls often has them."""
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    return torch.full((samples,), baselines.EPS, dtype=arithmetic, device=device)


def _affine_warp(moving: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    return ops.affine_warp(moving, matrix, size=moving.shape[2:])


def _level_sets(warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    eps = _scale(len(fixed), fixed.dtype, fixed.device)
    return ops.parallel_level_sets(warped, fixed, eps, eps)


def _objective(moving: torch.Tensor, fixed: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    eps = _scale(len(fixed), fixed.dtype, fixed.device)
    return ops.registration_objective(moving, fixed, u, "pls", eps_moving=eps, eps_fixed=eps).total


def _default(moving: torch.Tensor, fixed: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    return ops.registration_objective(moving, fixed, u, PRESETS["default"].similarity).total


def _composed(measure: Function, warp: Function, energies: Function) -> Function:
    """What PyTorch's users put together."""
    similarity, *others = PRESETS["default"].weights

    def objective(moving, fixed, u):
        terms = zip(others, energies(u), strict=True)
        return similarity * measure(warp(moving, u), fixed) + sum(w * t for w, t in terms)

    return objective


def _objective_forms(inputs: Tensors, measures: Sequence[Function] = ()) -> Sequence[Function]:
    """Of the first and of the second form of each part."""
    energies = baselines.energies_by_norms, baselines.energies_by_squares
    measures = measures or 2 * (baselines.level_sets_by_slices,)
    forms = zip(measures, baselines.warp_forms(inputs[2]), energies, strict=True)
    return [_composed(*parts) for parts in forms]


def _objective_by_gathers(inputs: Tensors, measure: Function | None = None) -> Function:
    warp = baselines.warp_by_gathers(inputs[2])
    measure = measure or baselines.level_sets_by_slices
    return _composed(measure, warp, baselines.energies_by_squares)


def _correlations(like: torch.Tensor) -> list[Function]:
    """The similarity of the preset "default", by both forms of the local correlation."""
    share = PRESETS["default"].similarity["lncc"]

    def mixed(local: Function) -> Function:
        return lambda w, r: baselines.correlation_by_sums(w, r) + share * local(w, r)

    return [mixed(local) for local in baselines.local_correlation_forms(like)]


CASES = {
    case.name: case
    for case in (
        Case(
            "warp",
            _moving_and_field,
            ops.warp,
            lambda inputs: baselines.warp_forms(inputs[1]),
            lambda channels, d: (8 * channels + 4 * d, 16 * channels + 12 * d),
            peers.warp_peers,
            True,
            lambda inputs: baselines.warp_by_gathers(inputs[1]),
        ),
        Case(
            "affine_warp",
            _moving_and_map,
            _affine_warp,
            lambda inputs: baselines.affine_forms(inputs[0]),
            lambda channels, _: (8 * channels, 16 * channels),
            compiled=lambda inputs: baselines.affine_by_gathers(inputs[0]),
        ),
        Case(
            "deformation_energy",
            _field,
            ops.deformation_energy,
            lambda _: (baselines.energies_by_norms, baselines.energies_by_squares),
            lambda _, d: (4 * d, 12 * d),
            has_field=True,
            compiled=lambda _: baselines.energies_by_squares,
        ),
        Case(
            "parallel_level_sets",
            _pair,
            _level_sets,
            lambda inputs: baselines.level_sets_forms(inputs[0]),
            lambda channels, _: (8 * channels, 20 * channels),
        ),
        Case(
            "registration_objective",
            _everything,
            _objective,
            _objective_forms,
            lambda channels, d: (8 * channels + 4 * d, 8 * channels + 8 * d),  # one pass gives both
            has_field=True,
            compiled=_objective_by_gathers,
        ),
        Case(
            "registration_objective_default",
            _everything,
            _default,
            lambda inputs: _objective_forms(inputs, _correlations(inputs[0])),
            lambda channels, d: (8 * channels + 4 * d, 8 * channels + 8 * d),
            has_field=True,
            compiled=lambda inputs: _objective_by_gathers(inputs, _correlations(inputs[0])[0]),
            operator="registration_objective",
        ),
        Case(
            "correlation",
            _pair,
            ops.correlation,
            lambda _: (baselines.correlation_by_sums, baselines.correlation_by_cosine),
            lambda channels, _: (8 * channels, 20 * channels),
        ),
        Case(
            "local_correlation",
            _pair,
            ops.local_correlation,
            lambda inputs: baselines.local_correlation_forms(inputs[0]),
            lambda channels, _: (8 * channels, 20 * channels),
        ),
        Case(
            "mutual_information",
            _pair,
            ops.mutual_information,
            lambda _: (baselines.information_by_windows, baselines.information_by_scatter),
            lambda channels, _: (8 * channels, 20 * channels),
        ),
        Case(
            "gradient_scale",
            _image,
            ops.gradient_scale,
            lambda _: (baselines.gradient_scale,),
            lambda channels, _: (4 * channels, 12 * channels),
        ),
        Case(
            "jacobian_determinant",
            _field,
            ops.jacobian_determinant,
            lambda _: (baselines.jacobian_determinant,),
            lambda _, d: (4 * d + 4 * 2**d, 12 * d + 8 * 2**d),
            has_field=True,
        ),
        Case(
            "jacobian_determinant_min",
            _field,
            lambda u: ops.jacobian_determinant(u, "min"),
            lambda _: (baselines.smallest_determinant,),
            lambda _, d: (4 * d + 4, 12 * d + 8),
            has_field=True,
            operator="jacobian_determinant",
        ),
    )
}
