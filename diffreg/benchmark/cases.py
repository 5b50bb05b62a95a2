"""What is timed: each operator with its inputs, the eager forms it is held against, and its roof.

A new operator is a new line of CASES.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from diffreg import ops
from diffreg.benchmark import baselines, peers
from diffreg.losses.presets import PRESETS

Tensors = tuple[torch.Tensor, ...]
Function = Callable[..., torch.Tensor]
FIELDS = ("smooth", "zero", "rough", "far")


@dataclass(frozen=True)
class Draw:
    """Inputs of one row.

    Args:
        shape: (N, C, H, W).
        dtype, device: of all tensors.
        field: a displacement that is "smooth" (3 voxels), "zero", "rough" (white noise of a voxel:
            it folds) or "far" (most of it outside the image).
    """

    shape: tuple[int, int, int, int]
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    field: str = "smooth"

    def image(self, seed: int) -> torch.Tensor:
        """Smooth, in [0, 1]."""
        n, c, h, w = self.shape
        return self._placed(0.5 + smooth((n, c, h, w), 0.5, seed))

    def displacement(self) -> torch.Tensor:
        """(N, 2, H, W)."""
        n, _, h, w = self.shape
        reach = {"smooth": 3.0, "zero": 0.0, "rough": 1.0, "far": 2.0 * max(h, w)}[self.field]
        if self.field == "rough":
            noise = torch.rand((n, 2, h, w), generator=torch.Generator().manual_seed(3))
            return self._placed(reach * (2 * noise - 1))
        return self._placed(smooth((n, 2, h, w), reach, 3))

    def _placed(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self.device, self.dtype)


def smooth(shape: tuple[int, int, int, int], amplitude: float, seed: int) -> torch.Tensor:
    """Random, of features an eighth of the image wide; largest value `amplitude`."""
    coarse = torch.randn(*shape[:2], 8, 8, generator=torch.Generator().manual_seed(seed))
    fine = F.interpolate(coarse, size=shape[2:], mode="bicubic", align_corners=False)
    return (fine * (amplitude / fine.abs().max())).contiguous()


def _field(draw: Draw) -> Tensors:
    return (draw.displacement().requires_grad_(),)


def _moving_and_field(draw: Draw) -> Tensors:
    return draw.image(1), draw.displacement().requires_grad_()


def _pair(draw: Draw) -> Tensors:
    return draw.image(1).requires_grad_(), draw.image(2)


def _image(draw: Draw) -> Tensors:
    return (draw.image(1).requires_grad_(),)


def _everything(draw: Draw) -> Tensors:
    return draw.image(1), draw.image(2), draw.displacement().requires_grad_()


@dataclass(frozen=True)
class Case:
    """One operator.

    Args:
        name: of the operator.
        inputs: what it takes; those that require a gradient are differentiated.
        ours: the operator, with one tensor as its value.
        eager: of the inputs, the same in PyTorch, in the forms that are tried.
        bytes: of the channels, the fewest that a pixel of float32 costs forward, and forward and
            backward.
        peers: of inputs, libraries on the same work.
        has_field: whether the kind of displacement matters.
    """

    name: str
    inputs: Callable[[Draw], Tensors]
    ours: Function
    eager: Callable[[Tensors], Sequence[Function]]
    bytes: Callable[[int], tuple[int, int]]
    peers: Callable[[torch.Tensor], dict[str, Function]] = lambda _: {}
    has_field: bool = False


def _energies(u: torch.Tensor) -> torch.Tensor:
    return torch.stack(tuple(ops.deformation_energy(u)))


def _level_sets(warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    return ops.parallel_level_sets(warped, fixed, baselines.EPS, baselines.EPS)


def _objective(moving: torch.Tensor, fixed: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    eps = baselines.EPS
    return ops.registration_objective(moving, fixed, u, "pls", eps_moving=eps, eps_fixed=eps).total


def _objective_forms(inputs: Tensors) -> Sequence[Function]:
    """What PyTorch's users put together, of the first and of the second form of each part."""
    similarity, *others = PRESETS["default"].weights

    def composed(warp: Function, energies: Function) -> Function:
        def objective(moving, fixed, u):
            terms = zip(others, energies(u), strict=True)
            level_sets = baselines.level_sets_by_slices(warp(moving, u), fixed)
            return similarity * level_sets + sum(w * t for w, t in terms)

        return objective

    energies = baselines.energies_by_norms, baselines.energies_by_squares
    return [
        composed(*parts) for parts in zip(baselines.warp_forms(inputs[2]), energies, strict=True)
    ]


CASES = {
    case.name: case
    for case in (
        Case(
            "warp",
            _moving_and_field,
            ops.warp,
            lambda inputs: baselines.warp_forms(inputs[1]),
            lambda channels: (8 * channels + 8, 16 * channels + 24),
            peers.warp_peers,
            True,
        ),
        Case(
            "deformation_energy",
            _field,
            _energies,
            lambda _: (baselines.energies_by_norms, baselines.energies_by_squares),
            lambda _: (8, 24),
            has_field=True,
        ),
        Case(
            "parallel_level_sets",
            _pair,
            _level_sets,
            lambda inputs: baselines.level_sets_forms(inputs[0]),
            lambda channels: (8 * channels, 20 * channels),
        ),
        Case(
            "registration_objective",
            _everything,
            _objective,
            _objective_forms,
            lambda channels: (8 * channels + 8, 8 * channels + 16),  # one pass gives both
            has_field=True,
        ),
        Case(
            "correlation",
            _pair,
            ops.correlation,
            lambda _: (baselines.correlation_by_sums, baselines.correlation_by_cosine),
            lambda channels: (8 * channels, 20 * channels),
        ),
        Case(
            "local_correlation",
            _pair,
            ops.local_correlation,
            lambda _: (
                baselines.local_correlation_separable,
                baselines.local_correlation_square,
            ),
            lambda channels: (8 * channels, 20 * channels),
        ),
        Case(
            "mutual_information",
            _pair,
            ops.mutual_information,
            lambda _: (baselines.information_by_windows, baselines.information_by_scatter),
            lambda channels: (8 * channels, 20 * channels),
        ),
        Case(
            "gradient_scale",
            _image,
            ops.gradient_scale,
            lambda _: (baselines.gradient_scale,),
            lambda channels: (4 * channels, 12 * channels),
        ),
        Case(
            "jacobian_determinant",
            _field,
            ops.jacobian_determinant,
            lambda _: (baselines.jacobian_determinant,),
            lambda _: (24, 56),
            has_field=True,
        ),
    )
}
