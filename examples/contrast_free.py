"""Pairs for networks that know no contrast: shapes from noise, and tissues of heads, painted anew.

[data]
name = "contrast_free:ShapesAndTissues"
settings = {size = [64, 64, 64], maps = "/data/tissues"}

    python examples/contrast_free.py FREE_HEADS /data/tissues

makes the tissues of two heads: FREE_HEADS has colin27_t1, colin27_aal, mni152_gm and mni152_wm
(.nii.gz, 1 mm, on one grid).
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from diffreg.data.shapes import Shapes

# Of AAL, left and right: hippocampus, amygdala, caudate, putamen, pallidum, thalamus.
DEEP = (37, 38, 41, 42, *range(71, 79))
EVERY = 5  # slices from one to the next that networks of images are shown


class ShapesAndTissues(Dataset):
    """Every second sample is of shapes from noise, the others of label maps in a folder.

    Args:
        size: *S, two or three axes.
        maps: a folder of label maps, volumes; patches of `size` are cut from them, of two axes from
            slices across the last axis.
        seed: sample k is a function of (seed, k).
        options: those of both `diffreg.data.shapes.Shapes`, such as scale and amplitude.
    """

    def __init__(self, size: list[int], maps: str, seed: int = 0, **options: float) -> None:
        files = sorted(Path(maps).glob("*.nii.gz"))
        patches = [patch for path in files for patch in _cut(path, size)]
        self.kinds = (
            Shapes(size, seed=seed, **options),
            Shapes(size, seed=seed + 1, maps=patches, **options),
        )

    def __len__(self) -> int:
        return len(self.kinds[0])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.kinds[index % 2][index]


def _cut(path: Path, size: list[int]) -> list[np.ndarray]:
    """Patches that cover a volume, at both ends of each axis and in the middle."""
    volume = np.asarray(nib.load(path).dataobj)
    if len(size) == 2:
        planes = range(EVERY, volume.shape[2] - EVERY, EVERY)
        return [patch for z in planes for patch in _patches(volume[..., z], size)]
    return _patches(volume, size)


def _patches(values: np.ndarray, size: list[int]) -> list[np.ndarray]:
    """None where the label map is the smaller one."""
    if any(n < s for n, s in zip(values.shape, size, strict=True)):
        return []
    corners = [sorted({0, (n - s) // 2, n - s}) for n, s in zip(values.shape, size, strict=True)]
    found = [
        values[tuple(slice(a, a + s) for a, s in zip(corner, size, strict=True))]
        for corner in product(*corners)
    ]
    return [patch for patch in found if (patch > 0).mean() > 0.2]


def tissues(heads: Path) -> dict[str, np.ndarray]:
    """Label maps of both heads: 1 cortex, 2 white matter, 3 fluid, from 4 on deep structures."""
    t1, aal, grey, white = (
        np.asarray(nib.load(heads / f"{name}.nii.gz").dataobj)
        for name in ("colin27_t1", "colin27_aal", "mni152_gm", "mni152_wm")
    )
    brain = t1 > 0
    low, high = np.quantile(t1[brain], [0.2, 0.68])  # fluid below, white matter above
    colin = np.where(t1 < low, 3, np.where(t1 < high, 1, 2)) * brain
    for number, label in enumerate(DEEP):
        colin[aal == label] = 4 + number // 2
    inside = (grey.astype(float) + white) > 40
    mni = np.where(grey >= white, 1, 2) * inside
    mni[_filled(inside) & (mni == 0)] = 3
    return {"colin27": colin.astype(np.uint8), "mni152": mni.astype(np.uint8)}


def _filled(mask: np.ndarray) -> np.ndarray:
    """A mask with what lies within it: here the ventricles."""
    from scipy.ndimage import binary_closing, binary_fill_holes

    closed: np.ndarray = binary_fill_holes(binary_closing(mask, iterations=4))
    return closed


def main(heads: str, out: str) -> None:
    Path(out).mkdir(parents=True, exist_ok=True)
    for name, labels in tissues(Path(heads)).items():
        for spacing in (1, 2):
            half = labels[::spacing, ::spacing, ::spacing]
            image = nib.Nifti1Image(half, np.diag([spacing, spacing, spacing, 1]))
            nib.save(image, Path(out) / f"{name}_{spacing}mm.nii.gz")


if __name__ == "__main__":
    main(*sys.argv[1:])
