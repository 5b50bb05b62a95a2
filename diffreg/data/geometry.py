"""Where voxels lie: an image with its affine, and resampling through two of them.

w = A_f (p + u(p)),   warped(p) = moving(A_m^-1 w)      p a voxel of the fixed grid, w RAS mm
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffreg.ops import warp

# How far two planes may be tilted to each other and still be taken for one (degrees).
_TILT = 1.0
# What an image was read from, which says how it is written again.
_KINDS = ("nifti", "png", "npz")


@dataclass(frozen=True)
class Image:
    """A 2-D image and its place in space.

    Args:
        data: (1, 1, *S) intensities as stored, float32, float64 where their contrast needs it, or
            the file's integers for labels; array axes as loaded: (x, y) of a NIfTI file, (y, x) of
            a PNG file.
        affine: (4, 4), voxel (axis 0, axis 1, slice) -> RAS mm.
        path: the file it was read from.
        kind: "nifti", "png" or "npz".
        header: the nibabel header, None for PNG.
        ndim_in_file: number of axes in the file.
        slice_index: the slice of a volume that this is, else None.
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

    def __post_init__(self) -> None:
        self._check_data()
        self._check_place()
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
        if len(shape) != 4 or shape[:2] != [1, 1] or 0 in shape:
            raise ValueError(f"data must be (1, 1, *S) with S of two axes, got {shape}")
        if self.data.is_complex():
            raise TypeError(f"data must be real, got {self.data.dtype}")
        if self.valid is None:
            return
        if not isinstance(self.valid, Tensor) or self.valid.dtype != torch.bool:
            raise TypeError(f"valid must be a tensor of bools, got {type(self.valid).__name__}")
        if self.valid.shape != self.data.shape:
            raise ValueError(f"valid must have the shape of data, got {list(self.valid.shape)}")

    def _check_place(self) -> None:
        if not isinstance(self.affine, np.ndarray) or self.affine.dtype.kind not in "iuf":
            raise TypeError(
                f"affine must be an array (4, 4) of numbers, got {type(self.affine).__name__}"
            )
        if self.affine.shape != (4, 4):
            raise ValueError(f"affine must be (4, 4), got {self.affine.shape}")
        check_affine(self.affine, self.name)

    @property
    def name(self) -> str:
        """What messages call it."""
        return "image" if self.path is None else str(self.path)

    @property
    def shape(self) -> tuple[int, ...]:
        """(*S), the voxels along each array axis."""
        return tuple(self.data.shape[2:])

    @property
    def spacing(self) -> tuple[float, ...]:
        """Physical length of a voxel along each array axis, mm."""
        return tuple(float(length) for length in np.linalg.norm(self.affine[:3, :2], axis=0))

    @property
    def is_flat(self) -> bool:
        """Whether the file has no third axis: PNG, or 2-D NIfTI in the world's x-y plane."""
        rise = np.abs(self.affine[2, :2])
        return self.ndim_in_file == 2 and bool(np.all(rise <= 1e-4 * np.array(self.spacing)))


def check_affine(affine: np.ndarray, name: str) -> None:
    """Refuse an affine that gives two voxels one place.

    Args:
        affine: (4, 4), voxel -> RAS mm.
        name: the file, for the message.

    Raises:
        ValueError: a value is not finite, a voxel has no extent, or the axes are dependent.

    Example:
        >>> import numpy as np
        >>> from diffreg.data.geometry import check_affine
        >>> check_affine(np.eye(4), "a.nii")
    """
    if not np.all(np.abs(affine) < 1e15):
        raise ValueError(f"{name}: the affine in the header holds values that are not finite")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.all(spacing > 0):
        zooms = ", ".join(f"{length:g}" for length in spacing)
        raise ValueError(f"{name}: the header gives a voxel no extent: spacing ({zooms}) mm")
    if not abs(np.linalg.det(affine[:3, :3] / spacing)) > 1e-6:
        raise ValueError(f"{name}: the affine in the header is singular: its axes are dependent")


def voxel_map(moving: Image, fixed: Image) -> np.ndarray:
    """The in-plane map from fixed voxels to moving voxels through both headers.

    Where one of the two is a 2-D file, which has no third axis, only the x-y plane is compared.

    Args:
        moving: the image to sample.
        fixed: the image whose grid is asked for.

    Returns:
        (2, 3) matrix M with moving voxel = M (p, 1), p a fixed voxel in array axes.

    Raises:
        ValueError: the planes are tilted to each other, or further apart than half a slice.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from diffreg.data.geometry import Image, voxel_map
        >>> grid = Image(torch.zeros(1, 1, 4, 5), np.diag([2.0, 2.0, 2.0, 1.0]))
        >>> finer = Image(torch.zeros(1, 1, 8, 10), np.eye(4))
        >>> voxel_map(finer, grid).tolist()
        [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]]
    """
    to_moving, to_fixed = moving.affine, fixed.affine
    if moving.is_flat or fixed.is_flat:
        _check_tilt(moving, fixed)
        to_moving, to_fixed = _without_depth(to_moving), _without_depth(to_fixed)
    else:
        _check_tilt(moving, fixed)
        _check_offset(moving, fixed)
    matrix = np.linalg.solve(to_moving, to_fixed)
    # Solving leaves 1e-16 where grids are equal; the identity is to be exact.
    nearest = np.round(matrix)
    matrix = np.where(np.abs(matrix - nearest) < 1e-9, nearest, matrix)
    return matrix[:2, [0, 1, 3]]


def resample_to(
    moving: Image,
    fixed: Image,
    displacement: Tensor | None = None,
    interpolation: str = "linear",
    fill: float | None = 0.0,
) -> Tensor:
    """Sample the moving image on the fixed grid, once, through both headers.

    In-plane rotations, flips, axis swaps, offsets, spacings and sizes may differ. Inside the moving
    image, which ends half a voxel beyond its outer voxel centres as ITK's does, the value is that
    of the edge repeated; outside it is `fill`, never a blend of both, and so it is where the image
    holds no number.

    Args:
        moving: the image to sample.
        fixed: the image whose grid is filled.
        displacement: (1, 2, *S) on the fixed grid, fixed voxels, array axes; None is the identity.
        interpolation: "linear", or "nearest" for labels.
        fill: outside the moving image; None: the edge repeated without end, which gives a
            registration no border to hold on to.

    Returns:
        (1, 1, *S) on the fixed grid, in the moving image's own type for "nearest", else in its
        floating type (float32 for integers).

    Raises:
        ValueError: the images share no plane, the displacement is not on the fixed grid, or the
            type of labels does not hold the fill value.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from diffreg.data.geometry import Image, resample_to
        >>> moving = Image(torch.arange(4.0).reshape(1, 1, 2, 2), np.eye(4))
        >>> mirrored = Image(torch.zeros(1, 1, 2, 2), np.diag([-1.0, 1.0, 1.0, 1.0]))
        >>> mirrored.affine[0, 3] = 1
        >>> resample_to(moving, mirrored).flatten().tolist()
        [2.0, 3.0, 0.0, 1.0]
    """
    position = _positions(moving, fixed, displacement)
    dtype = moving.data.dtype if moving.data.is_floating_point() else torch.float32
    dtype = moving.data.dtype if interpolation == "nearest" else dtype
    outside = None if fill is None else _filling(fill, dtype, moving)
    values = _sampled(moving.data, position, fixed, interpolation).to(dtype)
    return (
        values if outside is None else torch.where(_known(position, moving, fixed), values, outside)
    )


def coverage(moving: Image, fixed: Image, displacement: Tensor | None = None) -> Tensor:
    """Which fixed voxels show the moving image: by the headers, or where a displacement leads them.

    Args:
        moving: the image whose field of view counts, and of it the voxels that hold a number.
        fixed: the image whose grid is asked for.
        displacement: (1, 2, *S) on the fixed grid, fixed voxels, array axes; None is the identity.

    Returns:
        (1, 1, *S) float32 on the fixed grid, 1 inside and 0 outside.

    Raises:
        ValueError: the images do not lie in one plane, or have no voxel in common.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from diffreg.data.geometry import Image, coverage
        >>> grid = Image(torch.zeros(1, 1, 2, 3), np.eye(4))
        >>> coverage(grid, grid).sum().item()
        6.0
    """
    position = _positions(moving, fixed, displacement)
    inside = _known(position, moving, fixed)
    if not inside.any():
        how = "by their headers" if displacement is None else "by the displacement"
        raise ValueError(
            f"{moving.name} and {fixed.name} do not overlap: {how} no voxel of the "
            "second lies within the first"
        )
    return inside.to(torch.float32)


def usual_fill(moving: Image) -> float:
    """What a resampled image is filled with where the moving image ends, if nothing is said.

    Args:
        moving: an image of intensities.

    Returns:
        0 where that is its most frequent value, as outside a skull-stripped head; else its smallest
        value: a CT is filled with air.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from diffreg.data.geometry import Image, usual_fill
        >>> usual_fill(Image(torch.tensor([[[[-1000.0, 0.0, 40.0, -1000.0]]]]), np.eye(4)))
        -1000.0
    """
    values, counts = moving.data.unique(return_counts=True)
    zeros = counts[values == 0].sum()
    return 0.0 if zeros > 1 and zeros == counts.max() else float(values[0])


def check_fill(fill: float | None) -> None:
    """Refuse what no voxel outside an image can hold.

    Args:
        fill: as in `resample_to`.

    Raises:
        ValueError: it is neither a finite number nor None.

    Example:
        >>> from diffreg.data.geometry import check_fill
        >>> check_fill(-1000.0)
    """
    number = isinstance(fill, Real) and not isinstance(fill, bool)
    if fill is not None and not (number and np.isfinite(float(fill))):
        raise ValueError(f"fill must be a finite number or None, got {fill!r}")


def _positions(moving: Image, fixed: Image, displacement: Tensor | None) -> Tensor:
    """Where each fixed voxel lies in the moving image, (2, *S) float64, moving voxels."""
    for name, image in (("moving", moving), ("fixed", fixed)):
        if not isinstance(image, Image):
            raise TypeError(f"{name} must be a diffreg Image, got {type(image).__name__}")
    if displacement is not None and not isinstance(displacement, Tensor):
        raise TypeError(f"displacement must be a tensor, got {type(displacement).__name__}")
    expected = (1, 2, *fixed.shape)
    if displacement is not None and tuple(displacement.shape) != expected:
        raise ValueError(
            f"displacement must be {expected} on the grid of {fixed.name}, "
            f"got {tuple(displacement.shape)}"
        )
    matrix = torch.from_numpy(voxel_map(moving, fixed))
    grid = _grid(fixed)
    if displacement is not None:
        grid = grid + displacement[0].to("cpu", torch.float64)
    return torch.einsum("dk,kij->dij", matrix[:, :2], grid) + matrix[:, 2, None, None]


def _grid(fixed: Image) -> Tensor:
    """The fixed voxels, (2, *S) float64."""
    axes = [torch.arange(size, dtype=torch.float64) for size in fixed.shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def _sampled(data: Tensor, position: Tensor, fixed: Image, interpolation: str) -> Tensor:
    """An image (1, 1, *S) at positions in its own voxels, its edge repeated."""
    data = data if interpolation == "nearest" else data.to(torch.float64)
    displacement = (position - _grid(fixed))[None]
    return warp(data, displacement, interpolation=interpolation, padding="border")


def _known(position: Tensor, moving: Image, fixed: Image) -> Tensor:
    """Whether positions (2, *S) lie in the moving image and hold a number there, (1, 1, *S) bool.

    In the image is -0.5 <= index < n - 0.5 on every axis; the bounds are shifted by a billionth of
    a voxel, against the rounding of the map between grids. A value is known where no voxel that it
    is interpolated from is missing.
    """
    size = torch.tensor(moving.shape, dtype=torch.float64)[:, None, None]
    inside = ((position >= -0.5 - 1e-9) & (position < size - 0.5 - 1e-9)).all(0)[None, None]
    if moving.valid is None:
        return inside
    known = _sampled(moving.valid.to(torch.float64), position, fixed, "linear")
    return inside & (known > 1 - 1e-6)


def _filling(fill: float, dtype: torch.dtype, moving: Image) -> Tensor:
    """The fill value in the type of the samples."""
    check_fill(fill)
    value = torch.tensor(fill, dtype=torch.float64)
    if not dtype.is_floating_point and value.to(dtype).to(torch.float64) != value:
        raise ValueError(f"fill must be a value of {moving.name}, which holds {dtype}, got {fill}")
    return value.to(dtype)


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


def _without_depth(affine: np.ndarray) -> np.ndarray:
    """The affine of the x-y plane alone, (4, 4)."""
    plane = np.eye(4)
    plane[:2, :2], plane[:2, 3] = affine[:2, :2], affine[:2, 3]
    return plane


def _normal(image: Image) -> np.ndarray:
    """Unit normal of the image's plane, (3,); the z axis for a 2-D file."""
    if image.is_flat:
        return np.array([0.0, 0.0, 1.0])
    normal = np.cross(image.affine[:3, 0], image.affine[:3, 1])
    return normal / np.linalg.norm(normal)


def _check_tilt(moving: Image, fixed: Image) -> None:
    sine = np.linalg.norm(np.cross(_normal(moving), _normal(fixed)))
    tilt = float(np.degrees(np.arcsin(np.minimum(1.0, sine))))
    if tilt > _TILT:
        raise ValueError(
            f"{moving.name} and {fixed.name} do not lie in one plane: they are tilted by "
            f"{tilt:.1f} degrees to each other, and 2-D registration moves nothing out of its plane"
        )


def _check_offset(moving: Image, fixed: Image) -> None:
    rows, columns = (np.array([0, size - 1]) for size in fixed.shape)
    corners = np.array([[i, j, 0, 1] for i in rows for j in columns]).T
    depth = np.linalg.solve(moving.affine, fixed.affine @ corners)[2]  # in slices of the moving
    apart = float(np.abs(depth).max())
    if apart > 0.5 + 1e-3:
        thickness = float(np.linalg.norm(moving.affine[:3, 2]))
        raise ValueError(
            f"{moving.name} and {fixed.name} do not lie in one plane: they are up to "
            f"{apart * thickness:.2f} mm apart, more than half a slice of {thickness:g} mm"
        )
