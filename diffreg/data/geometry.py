"""An image and its place in space."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffreg.data.grid import Grid, check_affine

# What an image was read from, which says how it is written again.
_KINDS = ("nifti", "png", "npz")


@dataclass(frozen=True)
class Image:
    """A slice or a volume, and its place in space.

    Args:
        data: (1, 1, *S) intensities as stored, float32, float64 where their contrast needs it, or
            the file's integers for labels; array axes as loaded: (x, y) or (x, y, z) of a NIfTI
            file, (y, x) of a PNG file.
        affine: (4, 4), voxel (axis 0, axis 1, slice) -> RAS mm.
        path: the file it was read from.
        kind: how it is written again: "nifti", "png", or "npz", an array without a place, which
            becomes NIfTI.
        header: the nibabel header of a NIfTI file, else None.
        ndim_in_file: number of axes in the file.
        slice_index: the slice of a volume that this is, else None.
        time: the time point of a series that this is, else None.
        called: what messages call it where it has no path, such as the argument that it is.
        dtype: the numbers in the file, in which labels and PNG images are written again.
        valid: (1, 1, *S) bool, False where the file holds no number (NaN or infinite); None: all
            voxels hold one. Such voxels are never compared; `data` has the smallest number there.

    Raises:
        TypeError: data that are no tensor of real numbers, or an affine that is no array.
        ValueError: another kind, shapes that do not fit, an affine that gives two voxels one
            place, or no voxel that holds a number.
    """

    data: Tensor
    affine: np.ndarray
    path: Path | None = None
    kind: str = "nifti"
    header: Any = None
    ndim_in_file: int = 3
    slice_index: int | None = None
    dtype: np.dtype | type = np.float32
    valid: Tensor | None = None
    time: int | None = None
    called: str = "image"

    def __post_init__(self) -> None:
        self._check_data()
        check_affine(self.affine, self.name)
        if not self.data.is_floating_point():
            return
        finite = torch.isfinite(self.data)
        if bool(finite.all()):
            return
        if not bool(finite.any()):
            raise ValueError(f"{self.name} holds no number: every voxel is NaN or infinite")
        smallest = self.data[finite].min()
        valid = finite if self.valid is None else finite & self.valid
        object.__setattr__(self, "data", torch.where(finite, self.data, smallest))
        object.__setattr__(self, "valid", valid)

    def _check_data(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {self.kind!r}")
        if not isinstance(self.data, Tensor):
            raise TypeError(
                f"data must be a torch.Tensor (1, 1, *S), got {type(self.data).__name__}: "
                "diffreg.read_image reads a file, torch.from_numpy(array)[None, None] makes one"
            )
        shape = list(self.data.shape)
        if len(shape) not in (4, 5) or shape[:2] != [1, 1] or 0 in shape:
            raise ValueError(f"data must be (1, 1, *S) with S of two or three axes, got {shape}")
        if self.data.is_complex():
            raise TypeError(f"data must be real, got {self.data.dtype}")
        if self.valid is None:
            return
        if not isinstance(self.valid, Tensor) or self.valid.dtype != torch.bool:
            raise TypeError(f"valid must be a tensor of bools, got {type(self.valid).__name__}")
        if self.valid.shape != self.data.shape:
            raise ValueError(f"valid must have the shape of data, got {list(self.valid.shape)}")

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.called if self.path is None else str(self.path)

    @property
    def shape(self) -> tuple[int, ...]:
        """(*S), the voxels along each array axis."""
        return tuple(self.data.shape[2:])

    @property
    def grid(self) -> Grid:
        """Where its voxels lie."""
        return Grid(self.shape, self.affine, self.name, self.is_flat)

    def on(self, grid: Grid) -> Image:
        """An image of zeros on a grid, of this one's kind; its numbers take no memory."""
        data = torch.zeros((), dtype=torch.float32).expand(1, 1, *grid.size)
        return replace(self, data=data, affine=grid.affine, valid=None)

    def with_data(self, data: Tensor) -> Image:
        """Other numbers (1, 1, *S) on the same grid."""
        dtype = torch.zeros((), dtype=data.dtype).numpy().dtype
        return replace(self, data=data, path=None, called="image", dtype=dtype, valid=None)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Physical length of a voxel along each array axis, mm."""
        return self.grid.spacing

    @property
    def is_flat(self) -> bool:
        """Whether the file has no third axis: PNG, or 2-D NIfTI in the world's x-y plane."""
        rise = np.abs(self.affine[2, :2])
        lengths = np.linalg.norm(self.affine[:3, :2], axis=0)
        return self.ndim_in_file == 2 and bool(np.all(rise <= 1e-4 * lengths))

    def placed(self, world: np.ndarray) -> Image:
        """The same image where a map of the world finds it: T brings x to where it is sampled.

        Args:
            world: (4, 4) T, RAS mm, from the fixed image's space to this one's.

        Returns:
            The image with the affine T^-1 A; itself where T is the identity.
        """
        if np.array_equal(world, np.eye(4)):
            return self
        return replace(self, affine=np.linalg.solve(world, self.affine))


def voxel_map(moving: Image, fixed: Image) -> np.ndarray:
    """The map from fixed voxels to moving voxels through both headers, as `Grid.map_to`.

    Args:
        moving: the image to sample.
        fixed: the image whose grid is asked for.

    Returns:
        (D, D + 1) matrix M with moving voxel = M (p, 1), p a fixed voxel in array axes.

    Raises:
        ValueError: a slice and a volume, or slices that do not lie in one plane.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from diffreg.data.geometry import Image, voxel_map
        >>> grid = Image(torch.zeros(1, 1, 4, 5), np.diag([2.0, 2.0, 2.0, 1.0]))
        >>> finer = Image(torch.zeros(1, 1, 8, 10), np.eye(4))
        >>> voxel_map(finer, grid).tolist()
        [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]]
    """
    return fixed.grid.map_to(moving.grid)


def display_orientation(affine: np.ndarray, kind: str) -> tuple[bool, bool, bool]:
    """How to draw an array upright: patient left on the left, anterior (or superior) up.

    Of the two world axes that the plane follows most closely the first runs to the right (x to the
    patient's right, or y to anterior in a sagittal plane) and the second up.

    Args:
        affine: (4, 4), voxel -> RAS mm.
        kind: "nifti", or "png", which is drawn as it is.

    Returns:
        (transpose, flip_rows, flip_columns), applied to the array in this order.

    Example:
        >>> import numpy as np
        >>> from diffreg.data.geometry import display_orientation
        >>> display_orientation(np.eye(4), "nifti")
        (True, True, False)
    """
    if kind == "png":
        return (False, False, False)
    axes = affine[:3, :2] / np.linalg.norm(affine[:3, :2], axis=0)
    depth = int(np.argmax(np.abs(np.cross(axes[:, 0], axes[:, 1]))))
    across, up = (axes[k] for k in range(3) if k != depth)
    transpose = bool(abs(across[0]) + abs(up[1]) >= abs(across[1]) + abs(up[0]))
    column_axis, row_axis = (0, 1) if transpose else (1, 0)
    return (transpose, bool(up[row_axis] > 0), bool(across[column_axis] < 0))
