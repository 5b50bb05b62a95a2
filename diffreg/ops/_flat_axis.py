"""Axes of one voxel, along which nothing can change: a volume of one plane is an image, an image of
one row a line."""

import torch


def flat_axis(displacement: torch.Tensor) -> int | None:
    """The first spatial axis of one voxel, where another one is longer; None where there is none.

    A grid of one voxel, or of none, has no derivative and no cell in any number of dimensions.
    """
    sizes = displacement.shape[2:]
    if len(sizes) == 2 and max(sizes) < 2:
        return None
    return next((k for k, size in enumerate(sizes) if size == 1), None)


def without_axis(displacement: torch.Tensor, axis: int) -> torch.Tensor:
    """The displacement of the grid that is left without that flat spatial axis.

    Returns:
        Of a volume (N, 2, *S). Of an image two equal rows that do not move across: derivatives and
        determinants are those of the line, and no operator of one dimension is needed.
    """
    if displacement.ndim == 5:
        along = torch.cat([displacement[:, :axis], displacement[:, axis + 1 :]], dim=1)
        return along.squeeze(2 + axis)
    along = displacement[:, 1 - axis : 2 - axis]
    across = torch.zeros_like(along)
    both = torch.cat([across, along] if axis == 0 else [along, across], dim=1)
    return both.repeat_interleave(2, dim=2 + axis)


def with_axis(gradient: torch.Tensor, axis: int, dimensions: int) -> torch.Tensor:
    """The gradient to a displacement of so many axes, given that to `without_axis` of it."""
    if dimensions == 3:
        parts = list(gradient.unsqueeze(2 + axis).split(1, 1))
    else:
        along = gradient[:, 1 - axis : 2 - axis]
        parts = [along.sum(2 + axis, keepdim=True)]  # of both equal rows
    parts.insert(axis, torch.zeros_like(parts[0]))
    return torch.cat(parts, 1)


def lengths_without_axis(lengths: list[float], axis: int) -> list[float]:
    """The voxels' lengths along the axes of what `without_axis` gives."""
    return lengths if len(lengths) == 2 else lengths[:axis] + lengths[axis + 1 :]


def determinants_with_axis(
    determinants: torch.Tensor, axis: int, dimensions: int, reduced: bool
) -> torch.Tensor:
    """Those of `without_axis`, (N, ...), on the grid that has the flat axis."""
    if dimensions == 3:
        return determinants.unsqueeze(axis + (1 if reduced else 2))
    if reduced:
        return determinants
    return determinants[:, ::2] if axis == 0 else determinants[:, :2]  # of one of the equal rows
