"""Cardiac pairs with labels, end-systole (moving) to end-diastole (fixed), cut to a square.

Read from a folder with PATIENT_cine.nii.gz, PATIENT_endo.nii.gz and ed_es_pairs.csv.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

# Sides in voxels. The window round what moves is off the cavity's middle: 96 voxels would cut the
# cavity of 10 of the 38 pairs.
CROPS = {"labels": 96, "variance": 112}


@dataclass(frozen=True)
class Pair:
    """Images (1, 1, S, S), over their 99th percentile, at most 1.5; labels of that shape, 0 or 1.

    Args:
        spacing: of a voxel, mm, the same along both axes.
    """

    patient: str
    slice: int
    moving: torch.Tensor
    fixed: torch.Tensor
    moving_label: torch.Tensor
    fixed_label: torch.Tensor
    spacing: float

    @property
    def name(self) -> str:
        return f"{self.patient}/{self.slice}"


def read_pairs(folder: Path, crop: str = "labels") -> list[Pair]:
    """The labelled pairs of every patient.

    Args:
        folder: as above.
        crop: one of CROPS. "labels": round the middle of the box round both labels; "variance":
            round what moves, one window a patient, found without looking at a label.
    """
    with (folder / "ed_es_pairs.csv").open() as file:
        rows = list(csv.DictReader(file))
    pairs = []
    for patient in sorted({row["patient"] for row in rows}):
        cine, endo = (
            np.asarray(nib.load(folder / f"{patient}_{kind}.nii.gz").dataobj, np.float32)
            for kind in ("cine", "endo")
        )
        middle = middle_of_motion(cine)
        for row in rows:
            if row["patient"] == patient:
                phases = [int(row["es"]), int(row["ed"])]
                k = int(row["slice"])
                labels = endo[:, :, k, phases] > 0
                centre = middle if crop == "variance" else _middle_of_box(labels.any(2))
                window = window_of(centre, cine.shape[:2], CROPS[crop])
                images = [_normalized(cine[:, :, k, phase][window]) for phase in phases]
                pairs.append(
                    Pair(
                        patient,
                        k,
                        *(torch.from_numpy(image)[None, None] for image in images),
                        *(
                            torch.from_numpy(labels[:, :, n][window].astype(np.float32))[None, None]
                            for n in (0, 1)
                        ),
                        float(row["px_mm"]),
                    )
                )
    return pairs


def _normalized(image: np.ndarray) -> np.ndarray:
    return np.minimum(image / np.percentile(image, 99), 1.5).astype(np.float32)


def _middle_of_box(region: np.ndarray) -> list[float]:
    inside = np.argwhere(region)
    return list((inside.min(0) + inside.max(0) + 1) / 2)


def middle_of_motion(cine: np.ndarray) -> list[float]:
    """Centre of the tenth of the voxels of largest variance over time, weighted with it."""
    motion = cine.std(axis=3).mean(axis=2)
    motion = np.where(motion > np.percentile(motion, 90), motion, 0)
    return [
        float((motion.sum(axis=1 - axis) * np.arange(motion.shape[axis])).sum() / motion.sum())
        for axis in (0, 1)
    ]


def window_of(centre: list[float], shape: tuple[int, ...], size: int) -> tuple[slice, ...]:
    starts = [
        int(np.clip(round(c - size / 2), 0, n - size)) for c, n in zip(centre, shape, strict=True)
    ]
    return tuple(slice(start, start + size) for start in starts)
