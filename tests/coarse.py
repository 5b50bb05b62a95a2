"""The heads that ship, so coarse that a test may register them."""

from pathlib import Path

import nibabel as nib
import numpy as np

from diffreg.demo.raw import FIXED, MOVING

STEP = 4  # voxels of 2 mm in one of 8 mm


def coarse_heads(folder: Path) -> tuple[Path, Path]:
    """Both heads, the mean of STEP voxels along each axis; under 10,000 voxels each."""
    paths = folder / "moving.nii.gz", folder / "fixed.nii.gz"
    for head, path in zip((MOVING, FIXED), paths, strict=True):
        file = nib.load(head)
        shape = [n // STEP for n in file.shape]
        values = file.get_fdata()[tuple(slice(n * STEP) for n in shape)]
        blocks = values.reshape([k for n in shape for k in (n, STEP)]).mean((1, 3, 5))
        affine = file.affine @ np.diag([STEP, STEP, STEP, 1])
        affine[:3, 3] += file.affine[:3, :3] @ np.full(3, (STEP - 1) / 2)
        nib.save(nib.Nifti1Image(np.rint(blocks).astype(np.uint8), affine), path)
    return paths
