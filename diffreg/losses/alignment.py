"""Losses on what is known of a pair: labels, points, a displacement, and that a way leads back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffreg.fields import compose, warp_points
from diffreg.losses.similarities import REDUCTIONS, Similarity, reduced
from diffreg.ops._checks import (
    arithmetic_dtype,
    check_choice,
    check_displacement,
    check_pair,
    checked_mask,
)
from diffreg.ops._masks import counted
from diffreg.ops._per_axis import per_axis
from diffreg.ops.deformation_energy import _lengths


class Dice(Similarity):
    """1 - soft Dice overlap of labels, 2 sum(a b) / (sum a + sum b), mean over the labels present.

    Labels are channels in [0, 1], such as one-hot maps; `diffreg.ops.warp` with linear
    interpolation keeps them differentiable. A label that neither image has does not count. Without
    a channel for the background, that does not count either, nor does a voxel of weight 0.

    Args:
        reduction: "mean", "sum" or "none" over the batch.

    Raises:
        TypeError: maps of whole numbers, which are no channels.

    Source:
        Dice 1945; Milletari et al. 2016 for its use as a loss, there with squares below the line.

    Example:
        >>> import torch
        >>> from diffreg.losses import Dice
        >>> label = torch.tensor([[[[1.0, 1.0, 0.0]]]])
        >>> Dice()(label, torch.tensor([[[[1.0, 0.0, 0.0]]]]))
        tensor(0.3333)
    """

    def per_sample(self, warped: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        for name, labels in (("warped", warped), ("fixed", fixed)):
            if isinstance(labels, Tensor) and not labels.is_floating_point():
                raise TypeError(
                    f"{name} must be floating, in [0, 1], a channel for each label, as of "
                    f"torch.nn.functional.one_hot, got a map of {labels.dtype}"
                )
        check_pair(warped, fixed)
        dtype = arithmetic_dtype(warped, fixed)
        weights = checked_mask(mask, warped, dtype)
        a, b = (counted(labels.to(dtype), weights).flatten(2) for labels in (warped, fixed))
        weight = a.new_ones(1) if weights is None else weights.flatten(2)
        both, size = (weight * a * b).sum(2), (weight * (a + b)).sum(2)
        present = size > 0
        overlap = 2 * both / torch.where(present, size, torch.ones_like(size))
        missing = torch.where(present, 1 - overlap, torch.zeros_like(size))
        return missing.sum(1) / present.sum(1).clamp(min=1)


class Keypoint(nn.Module):
    """Mean squared distance of p + u(p) from where the fixed points p lie in the moving image.

    Called `loss(displacement, fixed_points, moving_points)`: (N, D, *S) in voxels, and (N, K, D)
    each, voxels of the fixed grid, component k along axis k of S. A point with a NaN coordinate
    does not count, so that samples may have different numbers of points. Outside the grid the
    displacement of its border holds.

    Args:
        spacing: physical length of a voxel, one number or one for each axis; None is 1.
        reduction: "mean", "sum" or "none" over the batch.

    Example:
        >>> import torch
        >>> from diffreg.losses import Keypoint
        >>> here, there = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 5.0]]])
        >>> Keypoint()(torch.ones(1, 2, 8, 8), here, there)
        tensor(5.)
    """

    def __init__(
        self, spacing: float | Sequence[float] | None = None, reduction: str = "mean"
    ) -> None:
        super().__init__()
        check_choice("reduction", reduction, REDUCTIONS)
        self.spacing, self.reduction = spacing, reduction

    def forward(self, displacement: Tensor, fixed_points: Tensor, moving_points: Tensor) -> Tensor:
        check_displacement(displacement)
        for name, points in (("fixed_points", fixed_points), ("moving_points", moving_points)):
            _check_points(name, points, displacement)
        if fixed_points.shape != moving_points.shape:
            raise ValueError(
                f"moving_points must have the shape of fixed_points, {list(fixed_points.shape)}, "
                f"got {list(moving_points.shape)}"
            )
        dtype = arithmetic_dtype(displacement, fixed_points, moving_points)
        counts = (torch.isfinite(fixed_points) & torch.isfinite(moving_points)).all(2)
        here = torch.where(counts[..., None], fixed_points.to(dtype), 0)
        there = torch.where(counts[..., None], moving_points.to(dtype), 0)
        apart = warp_points(here, displacement.to(dtype)) - there
        if self.spacing is not None:
            apart = apart * per_axis(_lengths(self.spacing, displacement.shape[1]), apart)
        squares = torch.where(counts, (apart**2).sum(2), torch.zeros_like(apart[..., 0]))
        return reduced(squares.sum(1) / counts.sum(1).clamp(min=1), self.reduction)


class EndPoint(nn.Module):
    """Mean distance of a displacement from the one that is known, |u(p) - t(p)|, voxels.

    Called `loss(displacement, true)`, (N, D, *S) each, voxels. A voxel where the truth is NaN does
    not count.

    Args:
        reduction: "mean", "sum" or "none" over the batch.

    Example:
        >>> import torch
        >>> from diffreg.losses import EndPoint
        >>> true = torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1).expand(1, 2, 8, 8)
        >>> EndPoint()(torch.zeros(1, 2, 8, 8), true)
        tensor(5.)
    """

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        check_choice("reduction", reduction, REDUCTIONS)
        self.reduction = reduction

    def forward(self, displacement: Tensor, true: Tensor) -> Tensor:
        check_displacement(displacement)
        _check_like("true", true, displacement)
        known = torch.isfinite(true).all(1, keepdim=True)
        apart = torch.where(known, displacement - true, 0)
        lengths = torch.linalg.vector_norm(apart, dim=1).flatten(1)
        return reduced(lengths.sum(1) / known.flatten(1).sum(1).clamp(min=1), self.reduction)


class InverseConsistency(nn.Module):
    """Mean squared distance of a voxel from where the way there and back leads it, voxels^2.

    Called `loss(displacement, back)`, (N, D, *S) each, voxels: |u(p) + v(p + u(p))|^2. Outside the
    grid the displacement of its border holds.

    Args:
        reduction: "mean", "sum" or "none" over the batch.

    Source:
        Christensen and Johnson 2001; as a loss of networks Zhang 2018, Greer et al. 2021.

    Example:
        >>> import torch
        >>> from diffreg.losses import InverseConsistency
        >>> InverseConsistency()(torch.ones(1, 2, 8, 8), -torch.ones(1, 2, 8, 8))
        tensor(0.)
    """

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        check_choice("reduction", reduction, REDUCTIONS)
        self.reduction = reduction

    def forward(self, displacement: Tensor, back: Tensor) -> Tensor:
        _check_like("back", back, displacement)
        squares = (compose(back, displacement) ** 2).sum(1)
        return reduced(squares.flatten(1).mean(1), self.reduction)


def _check_like(name: str, other: Tensor, displacement: Tensor) -> None:
    if other.shape != displacement.shape:
        raise ValueError(
            f"{name} must have the shape of displacement, {list(displacement.shape)}, got "
            f"{list(other.shape)}"
        )


def _check_points(name: str, points: Tensor, displacement: Tensor) -> None:
    dimensions = displacement.shape[1]
    if points.ndim != 3 or points.shape[0] != len(displacement) or points.shape[2] != dimensions:
        raise ValueError(
            f"{name} must be ({len(displacement)}, K, {dimensions}), got {list(points.shape)}"
        )
