"""The two heads as raw files: each on a grid of its own, the moving one turned and shifted."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from diffreg.data.geometry import Image
from diffreg.data.images import read_image, write_image
from diffreg.demo.measures import HEADS
from diffreg.system.extras import require

MOVING, FIXED = (HEADS / f"{name}_t1_2mm.nii.gz" for name in ("colin27", "mni152"))
ANGLE, AXIS = 20.0, np.array([2, 1, 2]) / 3  # degrees, about the middle of the grid
SHIFT = np.array([20.0, -15.0, 0.0])  # mm, 25 in all


def write_raw_heads(folder: str | Path) -> tuple[Path, Path]:
    """Write the two heads as if they came from two scanners.

    The voxels of the moving one are those that ship; its header turns it by 20 degrees about an
    oblique axis and shifts it by 25 mm, so that the true affine start is known (`turn`).

    Args:
        folder: for colin27_turned.nii.gz and mni152.nii.gz; it is made where it does not exist.

    Returns:
        The files of the moving and of the fixed image.

    Raises:
        OSError: the files could not be written.

    Example:
        >>> import tempfile
        >>> from diffreg.demo.raw import write_raw_heads
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in write_raw_heads(folder)]
        ['colin27_turned.nii.gz', 'mni152.nii.gz']
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    head = read_image(MOVING)
    turned = Image(head.data, turn(head) @ head.affine)
    moving, fixed = folder / "colin27_turned.nii.gz", folder / "mni152.nii.gz"
    write_image(moving, head.data, turned, head.dtype)
    shutil.copyfile(FIXED, fixed)
    return moving, fixed


def turn(head: Image) -> np.ndarray:
    """(4, 4), RAS mm, from where a head lies to where `write_raw_heads` puts it."""
    middle = (head.affine @ [*(np.subtract(head.shape, 1) / 2), 1])[:3]
    rotation = require("scipy.spatial.transform", "turning a head").Rotation
    world = np.eye(4)
    world[:3, :3] = rotation.from_rotvec(ANGLE * AXIS, degrees=True).as_matrix()
    world[:3, 3] = middle + SHIFT - world[:3, :3] @ middle
    return world
