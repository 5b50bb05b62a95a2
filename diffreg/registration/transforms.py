"""The transforms that a registration leaves beside displacement and affine: whole, and back."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from diffreg.registration.folders import COMPOSITE, INVERSE, INVERSE_COMPOSITE
from diffreg.transforms import Affine, Chain, Field, compose, write


def write_composites(folder: Path, transform: Chain) -> dict[str, Any]:
    """Write composite.h5, and of the way back inverse_displacement.nii.gz and inverse_composite.h5.

    The composites are ITK's, and need h5py: without it they are left out.

    Args:
        folder: where to.
        transform: the displacement as its file holds it, then the affine map.

    Returns:
        What metrics.json says of the inverse: its residuals in mm, and the share of the fixed grid
        to which nothing on it leads; or under "refused" why there is none.
    """
    has_h5 = importlib.util.find_spec("h5py") is not None
    if has_h5:
        write(folder / COMPOSITE, transform, "itk-h5")
    field, affine = transform.parts
    assert isinstance(field, Field) and isinstance(affine, Affine)
    try:
        back = field.inverse()
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
