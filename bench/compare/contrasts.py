"""Pairs of one contrast made pairs of two.

The moving image's intensities x, 0 to 1, become 1 - |2 x - 1|: grey matter brightest.
"""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from labelled import Pair


def other(values: np.ndarray) -> np.ndarray:
    """Intensities from 0 on in another contrast, from 0 to 255."""
    return 255 * (1 - np.abs(2 * values / values.max() - 1))


def simulated(pair: Pair, folder: Path, group: str | None = None) -> Pair:
    """The pair with its moving image in another contrast, written to `folder`, in another group."""
    image = nib.load(pair.moving)
    values = other(np.asarray(image.dataobj, np.float32))
    path = folder / pair.moving.name
    nib.save(nib.Nifti1Image(values.astype(np.uint8), image.affine), path)
    return replace(pair, moving=path, group=group or pair.group)
