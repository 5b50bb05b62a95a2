"""A start that is known, any tool's transform, as what `register` goes on from.

    whole(x) = T (x + d(x))

with T the product of its affine maps, and d, on the fixed grid, all that its fields do. Fields
without an affine map beside them have it in them, as those of FSL and elastix do: T is the one that
they are nearest to then, or the images would be compared where the headers have them, and the warp
judged as one that turns all of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffreg.affine.start import Start
from diffreg.data.grid import Grid
from diffreg.data.prepare import PairImages, Prepared
from diffreg.data.resampling import coverage
from diffreg.metrics import folding, mutual_information, ncc
from diffreg.registration.files import read_transform
from diffreg.transforms import Affine, Field, Transform, compose, flattened, read

ENOUGH = 2**15  # voxels to fit an affine map on, of many
_LINE = "start, as a transform from the fixed image to the moving one"
SMALLEST_AFFINE = 0.01  # determinant of one that is fitted; a smaller one is of no use as a start


def known_start(given: Any, pair: PairImages) -> Start:
    """Where a registration starts that goes on from a transform.

    Args:
        given: a transform from the fixed image's space to the moving one's; its file, of any tool
            whose format the file tells; a folder of `register`; what `register` returned; or
            several, of which a point passes the first one first, as ANTs' "fwdtransforms" are.
        pair: the images between which it leads.

    Returns:
        The affine map, and where the transform has fields what they do on the fixed grid, (1, D,
        *S) in fixed voxels.

    Raises:
        TypeError: nothing of the kind.
        FileNotFoundError, ValueError: a file that is none, a field that misses the fixed grid, or a
            map that leads out of a slice's plane, or past the moving image.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from diffreg.data.geometry import Image
        >>> from diffreg.data.prepare import PairImages
        >>> from diffreg.registration.known_start import known_start
        >>> from diffreg.transforms import Affine
        >>> image = Image(torch.zeros(1, 1, 8, 8, 8), np.eye(4))
        >>> known_start(Affine(np.diag([2.0, 1.0, 1.0, 1.0])), PairImages(image, image)).matrix[0]
        array([2., 0., 0., 0.])
    """
    transform = _transform_of(given, pair)
    grid = pair.fixed.grid
    maps = [step for step in transform.steps if isinstance(step, Affine)]
    fields = [step for step in transform.steps if isinstance(step, Field)]
    product = reduce(lambda done, step: step.matrix @ done, maps, np.eye(4))
    if not maps:
        product = _nearest_affine(fields, grid)
    affine, displacement = Affine(product, grid.is_flat), None
    if fields:
        rest: Transform = compose([transform, affine.inverse()])
        if not maps:  # on a field's grid, beyond which T alone is left then, and nothing is torn
            rest = flattened(rest, fields[0].grid, torch.float64)
        displacement = flattened(rest, grid).displacement
    try:
        coverage(pair.moving.placed(product), pair.fixed)
    except ValueError as error:
        raise ValueError(f"{_LINE}: {error}") from None
    metrics = {"affine": {"kind": "given", "matrix": product.tolist()}}
    return Start(product, None, metrics, displacement)


def _transform_of(given: Any, pair: PairImages) -> Transform:
    if isinstance(given, list | tuple):
        if not given:
            raise ValueError("start must be a transform or several, got none")
        return compose([_transform_of(part, pair) for part in given])
    if isinstance(given, str | Path):
        if Path(given).is_dir():
            return read_transform(given)
        return read(given, fixed=pair.fixed, moving=pair.moving)
    found = getattr(given, "transform", given)  # a registration's
    if not isinstance(found, Transform):
        raise TypeError(
            "start must be a diffreg.transforms.Transform, a file, a folder of register, what "
            f"register returned, or a list, got {type(given).__name__}; a matrix is for affine"
        )
    return found


def _nearest_affine(fields: Sequence[Field], grid: Grid) -> np.ndarray:
    """(4, 4), RAS mm: by least squares over the voxels that all fields hold; else the identity."""
    step = max(1, math.prod(grid.size) // ENOUGH)
    index = np.unravel_index(np.arange(0, math.prod(grid.size), step), grid.size)
    x = np.stack(index, axis=1) @ grid.axes.T + grid.affine[:3, 3]
    y, held = x, np.ones(len(x), dtype=bool)
    for field in fields:
        held &= field.holds(y)
        y = field(y)
    if not held.any():
        return np.eye(4)
    middle, u = x[held].mean(0), (y - x)[held]
    # The smallest one: voxels of one plane know nothing of the direction across it.
    linear = np.linalg.lstsq(x[held] - middle, u - u.mean(0), rcond=1e-6)[0].T
    found = np.eye(4)
    found[:3, :3] += linear
    found[:3, 3] = u.mean(0) - linear @ middle
    return found if abs(np.linalg.det(found[:3, :3])) > SMALLEST_AFFINE else np.eye(4)


def measured(prepared: Prepared, displacement: Tensor) -> dict[str, Any]:
    """How well a start fits that has a displacement, as metrics.json has it.

    Args:
        prepared: the pair after the affine map.
        displacement: (1, D, *S), fixed voxels.

    Raises:
        ValueError: it leaves nothing to compare.
    """
    displacement = displacement.to(torch.float32)
    try:
        before, at, fixed, mask = prepared.compared(displacement)
    except ValueError as error:
        raise ValueError(f"{_LINE}: {error}") from None
    information, alone = (
        mutual_information(image, fixed, mask=mask, moving=before) for image in (at, before)
    )
    return {
        "ncc": ncc(at, fixed, mask),
        "mutual_information": information,
        "mutual_information_of_affine": alone,
        "folded_percent": folding(displacement)["folded_percent"],
    }
