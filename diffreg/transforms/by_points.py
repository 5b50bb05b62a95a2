"""Sampling that goes from point to point, on the CPU: cubic B-splines, and labels by votes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import torch
from torch import Tensor

from diffreg.data.resampling import Route
from diffreg.system.extras import require

_AT_ONCE = 2**18  # points


def by_splines(data: Tensor, route: Route) -> Tensor:
    """Cubic B-spline interpolation with prefilter, mirrored about the outer voxel centres.

    Args:
        data: (1, C, X, Y, Z), floating.
        route: to its voxels.

    Returns:
        (1, C, *S) on the route's grid.

    Source:
        Unser 1999; scipy.ndimage, order 3, mode "mirror", as ITK's B-spline interpolation.
    """
    ndimage = require("scipy.ndimage", "interpolation by B-splines")
    found = torch.empty(1, data.shape[1], *route.size, dtype=data.dtype)
    for channel, out in zip(data[0].cpu(), found[0].flatten(1), strict=True):
        filtered = ndimage.spline_filter(channel.numpy(), 3, np.float64, mode="mirror")
        for part, points in _points(route):
            values = ndimage.map_coordinates(
                filtered, points.numpy(), order=3, mode="mirror", prefilter=False
            )
            out[part] = torch.from_numpy(values).to(data.dtype)
    return found


def by_labels(data: Tensor, route: Route) -> Tensor:
    """For each voxel the label that linear interpolation of each one's mask gives most.

    Of labels that have as much the smallest is taken. Beyond the outer voxel centres the border is
    repeated.

    Args:
        data: (1, C, X, Y, Z), labels of any type.
        route: to its voxels.

    Returns:
        (1, C, *S) on the route's grid, of the type of data.
    """
    found = torch.empty(1, data.shape[1], *route.size, dtype=data.dtype)
    for channel, out in zip(data[0].cpu(), found[0].flatten(1), strict=True):
        for part, points in _points(route):
            out[part] = _vote(channel, points)
    return found


def _vote(labels: Tensor, points: Tensor) -> Tensor:
    """Of labels (X, Y, Z) at points (3, K)."""
    ends = torch.tensor(labels.shape)[:, None] - 1
    points = torch.minimum(points.clamp(min=0), ends.to(points.dtype))
    low = torch.minimum(points.floor().long(), (ends - 1).clamp(min=0))
    share = points - low
    corners = list(product((0, 1), repeat=3))
    values, weights = [], []
    for corner in corners:
        up = torch.tensor(corner)[:, None]
        values.append(labels[tuple(torch.minimum(low + up, ends))])
        weights.append(torch.where(up > 0, share, 1 - share).prod(0))
    best, most = values[0], torch.full_like(weights[0], -1)
    for value in values:
        votes = sum(
            (other == value) * weight for other, weight in zip(values, weights, strict=True)
        )
        better = (votes > most + 1e-9) | ((votes > most - 1e-9) & (value < best))
        best, most = torch.where(better, value, best), torch.where(better, votes, most)
    return best


def _points(route: Route) -> Iterator[tuple[slice, Tensor]]:
    """Where the voxels of the grid are read, (3, K) float64, some at a time."""
    matrix = route.matrix[0].to("cpu", torch.float64)
    size = torch.Size(route.size)
    displacement = None if route.displacement is None else route.displacement[0].cpu().flatten(1)
    for first in range(0, size.numel(), _AT_ONCE):
        part = slice(first, min(first + _AT_ONCE, size.numel()))
        voxels = torch.stack(torch.unravel_index(torch.arange(part.start, part.stop), size))
        points = voxels.to(torch.float64)
        if displacement is not None:
            points += displacement[:, part]
        yield part, matrix[:, :3] @ points + matrix[:, 3:]
