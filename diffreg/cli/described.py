"""What a transform is, in words."""

from __future__ import annotations

import numpy as np

from diffreg.data.grid import in_words
from diffreg.transforms import Affine, Field, Transform


def described(transform: Transform) -> list[str]:
    """A line for the direction, and some for each part, in the order in which a point passes them.

    Args:
        transform: as `diffreg.transforms.read` gives it.

    Example:
        >>> import numpy as np
        >>> from diffreg.cli.described import described
        >>> from diffreg.transforms import Affine
        >>> described(Affine(np.eye(4)))[1]
        'affine: turned by 0 degrees, shifted by 0 mm at the origin, determinant 1'
    """
    lines = [
        "direction: points of the fixed image to the moving one, as resampling needs it; "
        "below in RAS mm"
    ]
    for step in transform.steps:
        lines += _affine(step) if isinstance(step, Affine) else _field(step)
    return lines


def _affine(step: Affine) -> list[str]:
    linear = step.matrix[:3, :3]
    left, _, right = np.linalg.svd(linear)
    turn = left @ right
    turn = turn if np.linalg.det(turn) > 0 else -turn
    angle = np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))
    shift = np.linalg.norm(step.matrix[:3, 3])
    words = f"turned by {angle:.4g} degrees, shifted by {shift:.4g} mm at the origin"
    mirrors = ", it mirrors" if step.determinant < 0 else ""
    rows = ["  ".join(f"{value:12.6f}" for value in row) for row in step.matrix[:3]]
    return [f"affine: {words}, determinant {step.determinant:.4g}{mirrors}", *rows]


def _field(step: Field) -> list[str]:
    axes = np.asarray(step.grid.axes)
    u = step.displacement[0].flatten(1).double().numpy()
    lengths = np.linalg.norm(axes @ u, axis=0)
    spacing = in_words([f"{length:.4g}" for length in step.grid.spacing])
    codes = _orientation(axes)
    origin = ", ".join(f"{value:.2f}" for value in step.grid.origin)
    return [
        f"field: {in_words(step.grid.size)} voxels of {spacing} mm, axes to {codes}, first voxel "
        f"at ({origin}); outside it nothing moves",
        f"  moves by up to {lengths.max():.4g} mm, {lengths.mean():.4g} mm in the mean",
        f"  {step.certificate()}",
    ]


def _orientation(axes: np.ndarray) -> str:
    """Where the axes lead, as RAS or LPI, by their largest component."""
    names = (("L", "R"), ("P", "A"), ("I", "S"))
    at = np.abs(axes).argmax(axis=0)
    return "".join(names[k][int(axes[k, column] > 0)] for column, k in enumerate(at))
