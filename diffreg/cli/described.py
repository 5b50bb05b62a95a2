"""What a transform is, in words: `diffreg info FILE`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffreg.cli.steps import Steps, parsed
from diffreg.data.grid import in_words
from diffreg.transforms import FORMATS, STORED, Affine, Field, Transform, format_of


def described_file(named: str, steps: Steps, source: str | None) -> list[str]:
    """What a file is, and what it does.

    Args:
        named: as on the command line.
        steps: what was read of it.
        source: its format, where that was said.
    """
    place, format_, _ = parsed(named)
    if Path(place).is_dir():
        head = [f"{place}: a folder of register"]
    else:
        name = format_ or source or format_of(place)
        head = [f"{place}: {name}, {FORMATS[name]}", f"stored: {STORED[name]}"]
    to, of = steps.ends
    return [
        *head,
        f"read as: points of the {of} image to the {to} one, RAS mm",
        *described(steps.chain),
    ]


def described(transform: Transform) -> list[str]:
    """Some lines for each part, in the order in which a point passes them; RAS mm.

    Args:
        transform: as `diffreg.transforms.read` gives it.

    Example:
        >>> import numpy as np
        >>> from diffreg.cli.described import described
        >>> from diffreg.transforms import Affine
        >>> described(Affine(np.eye(4)))[0]
        'affine: turned by 0 degrees, shifted by 0 mm at the origin, determinant 1'
    """
    lines: list[str] = []
    for step in transform.steps:
        lines += _affine(step) if isinstance(step, Affine) else _field(step)
    return lines


def _affine(step: Affine) -> list[str]:
    linear = step.matrix[:3, :3]
    left, _, right = np.linalg.svd(linear)
    angle = np.degrees(np.arccos(np.clip((np.trace(left @ right) - 1) / 2, -1, 1)))
    turned = f"turned by {angle:.4g} degrees" if step.determinant > 0 else "mirrored"
    shift = np.linalg.norm(step.matrix[:3, 3])
    words = f"{turned}, shifted by {shift:.4g} mm at the origin"
    rows = ["  ".join(f"{value:12.6f}" for value in row) for row in step.matrix[:3]]
    return [f"affine: {words}, determinant {step.determinant:.4g}", *rows]


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
