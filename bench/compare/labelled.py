"""Pairs of labelled images on one grid, and what a displacement makes of them.

Read from a folder with pairs.csv (group, moving, fixed, moving_label, fixed_label: paths in it).
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from sets import GROUPS

from diffreg.fields import fold_certificate, warp_labels
from diffreg.metrics import (
    dice,
    folding,
    sd_log_jacobian_learn2reg,
    surface_distances,
    target_registration_error,
)

# Of the heads: background, vessels, what few people have, and labels of one side or of no organ.
NOT_COMPARED = {42, 43, 46, 49, 50, 53, 54, 63, 64, 69}
DEEP = {4, 11, 23, 30, 31, 32, 35, 36, 37, 47, 48, 51, 52, 55, 56, 57, 58, 59, 60, 61, 62}
FIRST_OF_CORTEX = 100
SMALLEST_LABEL = 20  # voxels, of a label in a head's slice, in both images
SMALLEST = 1e-9  # of a determinant whose logarithm is taken


@dataclass(frozen=True)
class Pair:
    """Files of two people, or of two phases of one; moving_label and fixed_label are label maps.

    Args:
        truth: an array (D, *S), voxels: the displacement, where it is known, NaN where it does not
            count.
    """

    group: str
    moving: Path
    fixed: Path
    moving_label: Path
    fixed_label: Path
    truth: Path | None = None

    @property
    def name(self) -> str:
        return "-".join(path.name.removesuffix(".nii.gz") for path in (self.moving, self.fixed))

    @property
    def person(self) -> str:
        """Whom the figures are of: the one whose image is fixed."""
        return self.fixed.name.partition("_")[0]


def read_pairs(folder: Path, group: str) -> list[Pair]:
    with (folder / "pairs.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["group"] == group]
    names = ("moving", "fixed", "moving_label", "fixed_label")
    return [Pair(group, *(folder / row[name] for name in names)) for row in rows]


def label_group(label: int) -> str:
    """Of the heads; a heart has one label."""
    return "deep" if label in DEEP else "cortex" if label >= FIRST_OF_CORTEX else "rest"


def measured(pair: Pair, u: np.ndarray) -> dict:
    """How well the labels fit under u (D, *S), voxels, how evenly it bends, and what folds."""
    return fit(pair, u) | bending(u) | certified(u)


def in_both(labels: Sequence[np.ndarray], smallest: int = 1) -> list[int]:
    """Labels that are compared, and that two label maps have so many voxels of."""
    counts = [dict(zip(*np.unique(label, return_counts=True), strict=True)) for label in labels]
    found = set(counts[0]) & set(counts[1]) - {0} - NOT_COMPARED
    return sorted(int(k) for k in found if min(count[k] for count in counts) >= smallest)


def fit(pair: Pair, u: np.ndarray) -> dict:
    """The moving label map is read at the nearest voxel, the border repeated.

    Compared is what both people have: a label that the displacement loses has Dice 0 and no HD95.

    Returns:
        dice, dice_labels {label: value}, hd95 (mm, mean over labels) where both have a label, tre
        (mm, mean over landmarks) where there are any, end_point_error (voxels, mean) where the
        displacement is known.
    """
    (moving, _), (fixed, spacing) = map(_labels, (pair.moving_label, pair.fixed_label))
    group = GROUPS[pair.group]
    both = in_both((moving, fixed))
    labels = [label for label in both if not group.compared or label in group.compared]
    images = torch.from_numpy(moving)[None, None], torch.from_numpy(u)[None]
    warped = warp_labels(*images)[0, 0].numpy()
    found = _overlap(warped, fixed, spacing, labels) if labels else {}
    if pair.truth is not None:
        error = np.linalg.norm(u - np.load(pair.truth), axis=0)
        found["end_point_error"] = float(np.nanmean(error))
    points = [label for label in both if label not in labels] if group.landmarks else []
    if points:
        middles = [_middles(label_map, points) for label_map in (fixed, moving)]
        errors = target_registration_error(u, *middles, axes=np.diag(spacing))
        found["tre"] = float(errors.mean())
    return found


def _overlap(
    warped: np.ndarray, fixed: np.ndarray, spacing: tuple[float, ...], labels: list[int]
) -> dict:
    overlaps = dice(warped, fixed, labels)
    apart = [each["hd95"] for each in surface_distances(warped, fixed, spacing, labels).values()]
    known = [distance for distance in apart if not np.isnan(distance)]
    return {
        "dice": float(np.mean(list(overlaps.values()))),
        "dice_labels": {str(label): round(value, 5) for label, value in overlaps.items()},
        "hd95": float(np.mean(known)) if known else float("nan"),
    }


def bending(u: np.ndarray) -> dict:
    """What determinants by central differences and by the corners of a cell say of u."""
    determinants, corners = central_determinants(u), folding(u)
    folded, cells = ~(determinants > 0), int(np.prod([size - 1 for size in u.shape[1:]]))
    return {
        "sd_log_j": float(np.std(np.log(np.maximum(determinants, SMALLEST)))),
        "sd_log_j_learn2reg": sd_log_jacobian_learn2reg(u),
        "folded_central_percent": float(100 * folded.mean()),
        "folded_corners_percent": corners["folded_percent"],
        "folded_central": int(folded.sum()),
        "folded_corners": round(corners["folded_percent"] * cells / 100),
        "smallest_corner": corners["min_determinant"],
    }


def certified(u: np.ndarray) -> dict:
    """What the certificate of the whole cell says of u (D, *S)."""
    certificate = fold_certificate(torch.from_numpy(u)[None])
    return {
        "folded_certificate_percent": 100 * certificate.folded_share,
        "folded_cells": certificate.folded_cells,
        "folded_inside": certificate.folded_inside,
        "undecided_cells": certificate.undecided_cells,
        "smallest_determinant": certificate.smallest_determinant,
        "verdict": certificate.verdict,
    }


def central_determinants(u: np.ndarray) -> np.ndarray:
    """Of id + u (D, *S) by central differences, without two voxels at the border, as Learn2Reg."""
    axes = range(1, u.ndim)
    inner = (slice(None), *(slice(2, -2) for _ in axes))
    columns = [gradient[inner] for gradient in np.gradient(u.astype(np.float64), axis=tuple(axes))]
    return np.linalg.det(np.moveaxis(np.stack(columns, 1), (0, 1), (-2, -1)) + np.eye(len(axes)))


def _labels(path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    """(*S) as the file has them, and its spacing, mm."""
    file = nib.load(path)
    return np.asarray(file.dataobj), tuple(map(float, file.header.get_zooms()[:3]))


def _middles(labels: np.ndarray, points: list[int]) -> np.ndarray:
    """(K, 3): the mean voxel of each point."""
    return np.array([np.argwhere(labels == point).mean(0) for point in points])
