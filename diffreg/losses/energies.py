"""Energies of a displacement beside the fused three: curvature and total variation."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from diffreg.ops._checks import arithmetic_dtype, check_displacement
from diffreg.ops.deformation_energy import _lengths


def curvature_energy(
    displacement: torch.Tensor, spacing: float | Sequence[float] | None = None
) -> torch.Tensor:
    """Mean over all voxels of sum_c (Laplacian u_c)^2, neighbours clamped to the grid.

    Not the bending energy, which has the mixed derivatives and leaves the border out.

    Args:
        displacement: (N, D, *S), voxels, any floating dtype.
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
        >>> u[0, 0, 0, 1] = 1.0  # Laplacians 1, -2, 1
        >>> curvature_energy(u)
        tensor([2.])
    """
    check_displacement(displacement)
    lengths = _lengths(spacing, displacement.ndim - 2)
    u = displacement.to(arithmetic_dtype(displacement))
    laplacian = torch.zeros_like(u)
    for k, length in enumerate(lengths):
        axis, last = 2 + k, u.shape[2 + k] - 1
        index = torch.arange(last + 1, device=u.device)
        after = u.index_select(axis, (index + 1).clamp(max=max(last, 0)))
        before = u.index_select(axis, (index - 1).clamp(min=0))
        laplacian = laplacian + (after - 2 * u + before) / length**2
    squares = (laplacian * _per_component(lengths, u)) ** 2
    return _voxel_mean(squares)


def total_variation(
    displacement: torch.Tensor,
    beta: float = 0.01,
    spacing: float | Sequence[float] | None = None,
) -> torch.Tensor:
    """Mean over all voxels of sum_c (sqrt(|grad u_c|^2 + beta^2) - beta), forward differences.

    Args:
        displacement: (N, D, *S), voxels, any floating dtype.
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
        >>> u[0, 0, 0, 1] = 2.4  # one difference of 2.4: sqrt(2.4^2 + 0.7^2) - 0.7 = 1.8
        >>> total_variation(u, beta=0.7)
        tensor([0.9000])
    """
    check_displacement(displacement)
    if not 0 < beta < float("inf"):
        raise ValueError(f"beta must be positive and finite, got {beta}")
    lengths = _lengths(spacing, displacement.ndim - 2)
    u = displacement.to(arithmetic_dtype(displacement))
    squares = torch.zeros_like(u)
    for k, length in enumerate(lengths):
        # A neighbour outside the grid counts as equal: a difference of 0.
        index = (torch.arange(u.shape[2 + k], device=u.device) + 1).clamp(
            max=max(u.shape[2 + k] - 1, 0)
        )
        difference = (u.index_select(2 + k, index) - u) / length
        squares = squares + (difference * _per_component(lengths, u)) ** 2
    return _voxel_mean((squares + beta**2).sqrt() - beta)


def _per_component(lengths: list[float], u: torch.Tensor) -> torch.Tensor:
    """h_c, shaped to multiply component c."""
    made = [u.new_full((), length) for length in lengths]  # CUDA graphs allow no copy to the device
    return torch.stack(made).reshape(1, -1, *[1] * len(lengths))


def _voxel_mean(values: torch.Tensor) -> torch.Tensor:
    """Sum over components, mean over voxels, (N,); 0 where there are none."""
    sums = values.sum(1).flatten(1)
    return sums.mean(1) if sums.shape[1] else sums.sum(1)
