"""Energies of a displacement beside the fused three: curvature and total variation."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from diffreg.ops._checks import arithmetic_dtype, check_displacement
from diffreg.ops._flat_axis import flat_axis, lengths_without_axis, without_axis
from diffreg.ops._per_axis import per_axis
from diffreg.ops.deformation_energy import _lengths


def curvature_energy(
    displacement: torch.Tensor, spacing: float | Sequence[float] | None = None
) -> torch.Tensor:
    """Mean over the interior voxels of sum_c (Laplacian u_c)^2; affine maps cost nothing.

    Interior voxels have both neighbours along every axis; an axis of less than three voxels, which
    has no second difference, is left out of this and of the Laplacian. Not the bending energy,
    which has the mixed derivatives and averages each term where its own stencil fits.

    Args:
        displacement: (N, D, *S), voxels, any floating dtype. D = 2 or 3; a volume with an axis of
            one voxel is treated as an image, such an image as a line, and the displacement along
            that axis does not matter.
        spacing: physical length of a voxel along each axis, or one for all; None is 1. Second
            derivatives become d_kk u_c h_c / h_k^2.

    Returns:
        (N,), float32 for half types.

    Raises:
        TypeError, ValueError: as `diffreg.ops.deformation_energy`.

    Source:
        Fischer and Modersitzki 2003, curvature registration.

    Example:
        >>> import torch
        >>> from diffreg.losses import curvature_energy
        >>> u = torch.zeros(1, 2, 1, 3)
        >>> u[0, 1, 0, 1] = 1.0  # 0 - 2 + 0 at the only voxel with two neighbours
        >>> curvature_energy(u)
        tensor([4.])
    """
    u, lengths = _field_and_lengths(displacement, spacing)
    axes = [k for k in range(len(lengths)) if u.shape[2 + k] > 2]
    laplacian = 0 * _interior(u, axes)  # what there is where no axis has a second difference
    for k in axes:
        lines = _interior(u, [other for other in axes if other != k])
        laplacian = laplacian + torch.diff(lines, n=2, dim=2 + k) / lengths[k] ** 2
    squares = (laplacian * _per_component(lengths, u)) ** 2
    return _voxel_mean(squares)


def total_variation(
    displacement: torch.Tensor,
    beta: float = 0.01,
    spacing: float | Sequence[float] | None = None,
) -> torch.Tensor:
    """Mean over all voxels of sum_c (sqrt(|grad u_c|^2 + beta^2) - beta), forward differences.

    Args:
        displacement: (N, D, *S), voxels, any floating dtype. D = 2 or 3; a volume with an axis of
            one voxel is treated as an image, such an image as a line, and the displacement along
            that axis does not matter.
        beta: positive; below it the energy is smooth, above it proportional to the gradient.
        spacing: physical length of a voxel along each axis, or one for all; None is 1. First
            derivatives become d_k u_c h_c / h_k.

    Returns:
        (N,), float32 for half types.

    Raises:
        TypeError, ValueError: as `diffreg.ops.deformation_energy`, or a beta that is not positive.

    Source:
        Rudin, Osher and Fatemi 1992, total variation, component by component.

    Example:
        >>> import torch
        >>> from diffreg.losses import total_variation
        >>> u = torch.zeros(1, 2, 1, 2)
        >>> u[0, 1, 0, 1] = 2.4  # one difference of 2.4: sqrt(2.4^2 + 0.7^2) - 0.7 = 1.8
        >>> total_variation(u, beta=0.7)
        tensor([0.9000])
    """
    u, lengths = _field_and_lengths(displacement, spacing)
    if not 0 < beta < float("inf"):
        raise ValueError(f"beta must be positive and finite, got {beta}")
    squares = torch.zeros_like(u)
    for k, length in enumerate(lengths):
        # A neighbour outside the grid counts as equal: a difference of 0.
        index = (torch.arange(u.shape[2 + k], device=u.device) + 1).clamp(
            max=max(u.shape[2 + k] - 1, 0)
        )
        difference = (u.index_select(2 + k, index) - u) / length
        squares = squares + (difference * _per_component(lengths, u)) ** 2
    return _voxel_mean((squares + beta**2).sqrt() - beta)


def _field_and_lengths(
    displacement: torch.Tensor, spacing: float | Sequence[float] | None
) -> tuple[torch.Tensor, list[float]]:
    """What is measured, without axes of one voxel, and the lengths of its voxels."""
    check_displacement(displacement)
    lengths = _lengths(spacing, displacement.ndim - 2)
    u = displacement.to(arithmetic_dtype(displacement))
    while (axis := flat_axis(u)) is not None:  # a volume of one row has two
        u, lengths = without_axis(u, axis), lengths_without_axis(lengths, axis)
    return u, lengths


def _interior(u: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """The field without its first and last voxels along the spatial axes."""
    for k in axes:
        u = u.narrow(2 + k, 1, u.shape[2 + k] - 2)
    return u


def _per_component(lengths: list[float], u: torch.Tensor) -> torch.Tensor:
    """h_c, shaped to multiply component c."""
    return per_axis(lengths, u).reshape(1, -1, *[1] * len(lengths))


def _voxel_mean(values: torch.Tensor) -> torch.Tensor:
    """Sum over components, mean over positions, (N,); 0 where there are none."""
    sums = values.sum(1).flatten(1)
    return sums.mean(1) if sums.shape[1] else sums.sum(1)
