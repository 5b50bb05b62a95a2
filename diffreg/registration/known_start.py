"""A start that is known, any tool's transform, as what `register` goes on from.

    whole(x) = T (x + d(x))

with T the product of its affine maps, and d, on the fixed grid, all that its fields do.
"""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffreg.affine.start import Start
from diffreg.data.prepare import PairImages, Prepared
from diffreg.metrics import folding, mutual_information, ncc
from diffreg.registration.files import read_transform
from diffreg.transforms import Affine, Transform, compose, flattened, read


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
            map that leads out of a slice's plane.

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
    product = reduce(lambda done, step: step.matrix @ done, maps, np.eye(4))
    affine, displacement = Affine(product, grid.is_flat), None
    if len(maps) < len(transform.steps):
        displacement = flattened(compose([transform, affine.inverse()]), grid).displacement
    metrics = {"affine": {"kind": "given", "matrix": product.tolist()}}
    return Start(product, None, metrics, displacement)


def _transform_of(given: Any, pair: PairImages) -> Transform:
    if isinstance(given, list | tuple):
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
        line = "start, as a transform from the fixed image to the moving one"
        raise ValueError(f"{line}: {error}") from None
    return {
        "ncc": ncc(at, fixed, mask),
        "mutual_information": mutual_information(at, fixed, mask=mask, moving=before),
        "folded_percent": folding(displacement)["folded_percent"],
    }
