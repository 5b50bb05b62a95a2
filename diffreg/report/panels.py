"""A registered pair, and its images as upright RGB panels: overlays, checkerboard, outlines.

Every picture is turned upright by one triple, `display`; volumes are cut into such pictures by
`diffreg.report.volumes`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffreg.system.extras import require

# How array axes become rows and columns: transpose, then flip rows, then flip columns.
Display = tuple[bool, bool, bool]
Window = tuple[float, float]  # what is drawn black, and what white
# Arrays that a pair may be without.
OUTLINED = ("mask", "moving_labels", "warped_labels", "fixed_labels")


@dataclass
class PairView:
    """One registered pair, ready to be drawn; everything lies on the fixed grid S, in array axes.

    Args:
        title: what the pair is called.
        moving: (*S), S of two or three axes: the moving image on the fixed grid, before the warp.
        fixed: (*S).
        warped: (*S), moving(p + u(p)).
        displacement: (D, *S), voxels, component k along array axis k.
        spacing: physical length of a voxel along each array axis; (): 1 along each.
        display: of an image, (transpose, flip_rows, flip_columns), see `upright`.
        metrics: name -> number, text, or (before, after).
        mask: (*S), drawn as an outline.
        affine: of a volume, (4, 4), voxel -> RAS mm: it turns the planes upright; None: it has no
            place in space, and they are drawn as they are stored.
        moving_labels, warped_labels, fixed_labels: of a volume, (*S) whole numbers each, the moving
            ones before and after the warp; drawn as outlines.
        limits: the windows of moving and fixed, of a slice those of its volume; None: their own.
        determinants: (*(S - 1)), of a slice what its volume has there; None: the displacement's.
        determinant_limit: of their colours, of a slice that of its volume; None: their own.

    Raises:
        ValueError: a shape, the spacing or the affine does not fit.

    Example:
        >>> volume = np.zeros((4, 5, 6))
        >>> PairView("a", volume, volume, volume, np.zeros((3, 4, 5, 6)), (1, 1, 2.5)).is_volume
        True
    """

    title: str
    moving: np.ndarray
    fixed: np.ndarray
    warped: np.ndarray
    displacement: np.ndarray
    spacing: Sequence[float] = ()
    display: Display = (False, False, False)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    mask: np.ndarray | None = None
    affine: np.ndarray | None = None
    moving_labels: np.ndarray | None = None
    warped_labels: np.ndarray | None = None
    fixed_labels: np.ndarray | None = None
    limits: tuple[Window, Window] | None = None
    determinants: np.ndarray | None = None
    determinant_limit: float | None = None

    def __post_init__(self) -> None:
        self.fixed = np.asarray(self.fixed)
        shape = self.fixed.shape
        if len(shape) not in (2, 3) or self.fixed.size == 0:
            raise ValueError(f"fixed must be (H, W) or (X, Y, Z), got {list(shape)}")
        self._check("displacement", (len(shape), *shape))
        for name in ("moving", "warped", *OUTLINED):
            self._check(name, shape)
        self.spacing = tuple(float(h) for h in self.spacing) or (1.0,) * len(shape)
        if len(self.spacing) != len(shape) or not all(0 < h < np.inf for h in self.spacing):
            count = "two" if len(shape) == 2 else "three"
            raise ValueError(f"spacing must be {count} lengths > 0, got {list(self.spacing)}")
        if self.affine is not None and np.shape(self.affine) != (4, 4):
            raise ValueError(f"affine must be [4, 4], got {list(np.shape(self.affine))}")

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        """Makes an array of what was given for it, which may be nothing for outlines."""
        if name in OUTLINED and getattr(self, name) is None:
            return
        array = np.asarray(getattr(self, name))
        if array.shape != shape:
            raise ValueError(f"{name} must be {list(shape)}, got {list(array.shape)}")
        setattr(self, name, array)

    @property
    def is_volume(self) -> bool:
        """Whether it has three axes."""
        return self.fixed.ndim == 3

    @property
    def windows(self) -> tuple[Window, Window]:
        """What is drawn black and white, of moving (and warped) and of fixed."""
        return self.limits or (window(self.moving), window(self.fixed))

    @property
    def aspect(self) -> float:
        """Of an image: height over width of the upright picture in physical units."""
        height, width = (n * float(h) for n, h in zip(self.fixed.shape, self.spacing, strict=True))
        return width / height if self.display[0] else height / width


def upright(image: np.ndarray, display: Display) -> np.ndarray:
    """Turns an array into rows and columns of a picture.

    Args:
        image: (H, W) or (H, W, C).
        display: (transpose, flip_rows, flip_columns), applied in this order.

    Returns:
        (rows, columns) or (rows, columns, C), a view.

    Example:
        >>> upright(np.array([[1, 2, 3], [4, 5, 6]]), (True, True, False)).tolist()
        [[3, 6], [2, 5], [1, 4]]
    """
    transpose, flip_rows, flip_columns = display
    image = image.swapaxes(0, 1) if transpose else image
    image = image[::-1] if flip_rows else image
    return image[:, ::-1] if flip_columns else image


def upright_points(
    points: np.ndarray, shape: Sequence[int], display: Display
) -> tuple[np.ndarray, np.ndarray]:
    """Where points of the array lie in the picture that `upright` makes of it.

    Args:
        points: (2, ...), voxels, component k along array axis k.
        shape: (H, W) of the array.
        display: as in `upright`.

    Returns:
        rows and columns, each of shape (...).
    """
    transpose, flip_rows, flip_columns = display
    rows, columns = (points[1], points[0]) if transpose else (points[0], points[1])
    height, width = (shape[1], shape[0]) if transpose else (shape[0], shape[1])
    rows = height - 1 - rows if flip_rows else rows
    return rows, (width - 1 - columns if flip_columns else columns)


def window(image: np.ndarray) -> Window:
    """The percentiles 0.5 and 99.5 of the finite values; the range where they coincide."""
    values = image[np.isfinite(image)].astype(np.float64)
    if values.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(values, (0.5, 99.5))
    return (float(low), float(high)) if high > low else (float(values.min()), float(values.max()))


def level(image: np.ndarray, limits: Window) -> np.ndarray:
    """[0, 1] within the limits; 0 for nan and for a constant image."""
    low, high = limits
    scaled = (image.astype(np.float64) - low) / (high - low if high > low else 1.0)
    return np.clip(np.nan_to_num(scaled, nan=0.0, posinf=1.0, neginf=0.0), 0.0, 1.0)


def grey(image: np.ndarray, limits: Window, display: Display) -> np.ndarray:
    """(rows, columns, 3) uint8, grey between the limits."""
    values = np.rint(255 * level(image, limits)).astype(np.uint8)
    return np.repeat(upright(values, display)[..., None], 3, axis=2)


def overlay(
    image: np.ndarray,
    fixed: np.ndarray,
    limits: tuple[Window, Window],
    display: Display,
) -> np.ndarray:
    """(rows, columns, 3) uint8: image in magenta, fixed in green, so grey where they agree.

    Args:
        image: (H, W), moving or warped.
        fixed: (H, W).
        limits: the window of image and of fixed.
        display: as in `upright`.
    """
    a, b = level(image, limits[0]), level(fixed, limits[1])
    return upright(np.rint(255 * np.stack([a, b, a], axis=-1)).astype(np.uint8), display)


def overlays(pair: PairView) -> tuple[np.ndarray, np.ndarray]:
    """Fixed image and moving image before and after, (rows, columns, 3), in the same windows."""
    return (
        overlay(pair.moving, pair.fixed, pair.windows, pair.display),
        overlay(pair.warped, pair.fixed, pair.windows, pair.display),
    )


def checkerboard(view: PairView, tiles: int = 8) -> np.ndarray:
    """(rows, columns, 3) uint8: warped and fixed in turn, `tiles` squares to the longer side."""
    limits, fixed_limits = view.windows
    warped = grey(view.warped, limits, view.display)
    fixed = grey(view.fixed, fixed_limits, view.display)
    spacing = view.spacing[::-1] if view.display[0] else view.spacing
    lengths = [n * float(h) for n, h in zip(fixed.shape, spacing, strict=False)]
    rows, columns = (
        (np.arange(n) + 0.5) * float(h) // (max(lengths) / tiles)
        for n, h in zip(fixed.shape, spacing, strict=False)
    )
    takes_fixed = (rows[:, None] + columns[None, :]) % 2 == 1
    return np.where(takes_fixed[..., None], fixed, warped)


def outlined(view: PairView) -> np.ndarray:
    """(rows, columns, 3) uint8: the fixed image with the outline of the mask."""
    picture = grey(view.fixed, view.windows[1], view.display).copy()
    if view.mask is not None:
        inside = np.pad(view.mask > 0, 1)
        core = inside[1:-1, 1:-1].copy()
        for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
            core &= np.roll(inside, step, axis)[1:-1, 1:-1]
        picture[upright((view.mask > 0) & ~core, view.display)] = (255, 209, 64)
    return picture


def png(picture: np.ndarray, longest: int = 1000) -> bytes:
    """A PNG file of (rows, columns, 3) uint8, shrunk where a side is longer than `longest`."""
    if (picture == picture[..., :1]).all():
        picture = picture[..., 0]
    return _file(picture, longest, "PNG", compress_level=6)


def jpeg(picture: np.ndarray, longest: int) -> bytes:
    """A JPEG file, a tenth of the PNG's size; colours are kept as fine as light and dark."""
    return _file(picture, longest, "JPEG", quality=82, subsampling=0, optimize=True)


def _file(picture: np.ndarray, longest: int, kind: str, **options: Any) -> bytes:
    pillow = require("PIL.Image", "pictures")
    image = pillow.fromarray(np.ascontiguousarray(picture))
    image.thumbnail((longest, longest), pillow.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
