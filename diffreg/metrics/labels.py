"""How well label maps overlap and how far apart their surfaces are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from diffreg.metrics._arrays import Array, single, voxels
from diffreg.ops.deformation_energy import _lengths
from diffreg.system.extras import require


def shared_labels(label_a: Array, label_b: Array) -> list[int]:
    """The labels but 0 that two label maps both have: those that a registration can match.

    Args:
        label_a: whole numbers or booleans, of any shape.
        label_b: of any shape.

    Example:
        >>> shared_labels(np.array([[0, 2, 3]]), np.array([[3, 1]]))
        [3]
    """
    both = np.intersect1d(np.asarray(label_a), np.asarray(label_b))
    return [int(label) for label in both if label]


def dice(label_a: Array, label_b: Array, labels: Iterable[int] | None = None) -> dict[int, float]:
    """The overlap 2 |A n B| / (|A| + |B|) of every label of two label maps.

    Args:
        label_a: whole numbers or booleans, (*S) or (1, 1, *S).
        label_b: of the same shape.
        labels: the labels to compare. None: every label but 0 that either map has.

    Returns:
        {label: overlap in [0, 1]}; nan for a label that neither map has.

    Raises:
        ValueError: shapes differ, a map is empty, or a value is not a whole number.

    Source: Dice 1945.

    Example:
        >>> dice(np.array([[1, 1, 0]]), np.array([[1, 0, 0]]))
        {1: 0.6666666666666666}
    """
    a, b = _label_maps(label_a, label_b)
    overlaps = {}
    for label in _compared(a, b, labels):
        in_a, in_b = a == label, b == label
        size = int(in_a.sum() + in_b.sum())
        overlaps[int(label)] = 2 * int((in_a & in_b).sum()) / size if size else float("nan")
    return overlaps


def surface_distances(
    label_a: Array,
    label_b: Array,
    spacing: float | Sequence[float] | None = None,
    labels: Iterable[int] | None = None,
) -> dict[int, dict[str, float]]:
    """How far the surfaces of every label of two maps are apart.

    A voxel is on the surface of a label where a neighbour along an axis (4 in 2-D, 6 in 3-D) is not
    of it, or is outside the image; distances run from each surface voxel to the nearest one of the
    other surface.

    Args:
        label_a: whole numbers or booleans, (*S) or (1, 1, *S).
        label_b: of the same shape.
        spacing: physical length of a voxel along each axis, mm, or one for all; None is 1.
        labels: the labels to compare. None: every label but 0 that either map has.

    Returns:
        {label: {"hd95": the larger of the two directed 95th percentiles, "assd": the mean of all
        distances of both directions}}, mm; nan for a label that a map does not have.

    Raises:
        ValueError: shapes differ, a map is empty, a value is not a whole number, or a spacing that
            does not fit.

    Example:
        >>> surface_distances(np.eye(3)[:1], np.eye(3)[1:2], spacing=(1, 2.5))[1]["hd95"]
        2.5
    """
    shape = single("label_a", label_a).shape
    a, b = (values.reshape(shape) for values in _label_maps(label_a, label_b))
    lengths = _lengths(spacing, len(shape))
    found = {}
    for label in _compared(a, b, labels):
        in_a, in_b = a == label, b == label
        if not (in_a.any() and in_b.any()):
            found[int(label)] = {"hd95": float("nan"), "assd": float("nan")}
            continue
        to_b, to_a = _directed(in_a, in_b, lengths)
        found[int(label)] = {
            "hd95": float(max(np.percentile(to_b, 95), np.percentile(to_a, 95))),
            "assd": float(np.mean(np.concatenate([to_b, to_a]))),
        }
    return found


def _directed(
    in_a: np.ndarray, in_b: np.ndarray, lengths: list[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Distances of the surface voxels of each region from the surface of the other."""
    ndimage: Any = require("scipy.ndimage", "distances of surfaces")
    # Both surfaces are in the box that holds both regions: a label is a small part of a volume.
    (box,) = ndimage.find_objects((in_a | in_b).astype(np.int8))
    a, b = (_surface(region[box], ndimage) for region in (in_a, in_b))
    to_a, to_b = (ndimage.distance_transform_edt(~part, sampling=lengths) for part in (a, b))
    return to_b[a], to_a[b]


def _surface(region: np.ndarray, ndimage: Any) -> np.ndarray:
    return region & ~ndimage.binary_erosion(region)


def _label_maps(label_a: Array, label_b: Array) -> list[np.ndarray]:
    """Both maps, flat; refused where a value is not a whole number."""
    maps = voxels({"label_a": label_a, "label_b": label_b}, None)[:2]
    for name, values in zip(("label_a", "label_b"), maps, strict=True):
        if not (np.isfinite(values) & (values == np.floor(values))).all():
            raise ValueError(f"{name} must hold whole numbers, one a label")
    return maps


def _compared(a: np.ndarray, b: np.ndarray, labels: Iterable[int] | None) -> Iterable[int]:
    return sorted({int(v) for v in np.union1d(a, b)} - {0}) if labels is None else labels
