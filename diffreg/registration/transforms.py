"""What a registration found as one transform, and what it leaves of that: whole, and back."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from diffreg.data.grid import Grid
from diffreg.fields import FoldCertificate
from diffreg.registration.folders import COMPOSITE, INVERSE, INVERSE_COMPOSITE
from diffreg.system.files import FileWarning
from diffreg.system.memory import returned_memory
from diffreg.transforms import Affine, Chain, Field, compose, write


def whole_map(displacement: Tensor, affine: np.ndarray, grid: Grid) -> Chain:
    """x -> T(x + d(x)).

    Args:
        displacement: (1, D, *S) d, fixed voxels.
        affine: (4, 4) T, RAS mm.
        grid: the fixed image's.
    """
    return compose([Field(displacement, grid), Affine(affine, grid.is_flat)])


@returned_memory()  # what the search has left is given back first
def write_composites(
    folder: Path, transform: Chain, certificate: FoldCertificate | None
) -> dict[str, Any]:
    """Write composite.h5, and of the way back inverse_displacement.nii.gz and inverse_composite.h5.

    The composites are ITK's, and need h5py: without it they are left out.

    Args:
        folder: where to.
        transform: the displacement as its file holds it, then the affine map.
        certificate: of that displacement, where it is known.

    Returns:
        What metrics.json says of the inverse: its residuals in mm, and the share of the fixed grid
        to which nothing on it leads; or under "refused" why there is none.
    """
    has_h5 = importlib.util.find_spec("h5py") is not None
    if has_h5:
        write(folder / COMPOSITE, transform, "itk-h5")
    else:
        warnings.warn(
            f"without h5py {COMPOSITE} and {INVERSE_COMPOSITE} are left out: pip install "
            "'diffreg[h5]'",
            FileWarning,
            stacklevel=2,
        )
    field, affine = transform.parts
    assert isinstance(field, Field) and isinstance(affine, Affine)
    try:
        back = field.inverse(certificate)
    except ValueError as error:  # it folds
        return {"refused": str(error)}
    write(folder / INVERSE, back, "itk-field")
    if has_h5:
        write(folder / INVERSE_COMPOSITE, compose([affine.inverse(), back]), "itk-h5")
    assert back.residual is not None
    return {
        "at_voxels_mm": back.residual.at_voxels,
        "between_voxels_mm": back.residual.between_voxels,
        "outside_percent": 100 * back.residual.outside,
    }
