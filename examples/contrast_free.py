"""Pairs for networks that know no contrast: shapes from noise, and heads, painted anew.

[data]
name = "contrast_free:ShapesAndTissues"
settings = {size = [64, 64, 64], maps = "/data/tissues"}

    python examples/contrast_free.py FREE_HEADS /data/tissues

makes the tissues of two heads: FREE_HEADS has colin27_t1, colin27_aal, mni152_t1, mni152_gm and
mni152_wm (.nii.gz, 1 mm, on one grid).
"""

from __future__ import annotations

import sys
from itertools import combinations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import binary_closing, binary_fill_holes, gaussian_filter
from torch import Tensor
from torch.utils.data import Dataset

from diffreg.data.shapes import Shapes

# Of AAL, left and right: hippocampus, amygdala, caudate, putamen, pallidum, thalamus.
DEEP = (37, 38, 41, 42, *range(71, 79))
OTHERWISE = 1.0  # amplitude where two heads differ of themselves
EVERY = 5  # slices from one to the next that networks of images are shown


class ShapesAndTissues(Dataset):
    """Shapes from noise and heads of a folder, in turn, the heads' displacement known or of two.

    Args:
        size: *S, two or three axes.
        maps: a folder of label maps, volumes NAME.nii.gz, and their images, NAME_t1.nii.gz; patches
            of `size` are cut from them, of two axes from slices across the last axis.
        pairs: whether half of the samples are of two heads, a quarter of shapes, a quarter of one
            head; else half are of shapes, half of one head.
        seed: sample k is a function of (seed, k).
        options: those of both `diffreg.data.shapes.Shapes`, such as scale and amplitude.
    """

    def __init__(
        self, size: list[int], maps: str, pairs: bool = True, seed: int = 0, **options: Any
    ) -> None:
        files = sorted(Path(maps).glob("*_t1.nii.gz"))
        heads = {
            file.name[:-10]: (_read(file.with_name(file.name.replace("_t1", ""))), _read(file))
            for file in files
        }
        one = [patch for head in heads.values() for patch in _cut(*head, size)]
        options = {"seed": seed, **options}
        self.kinds = [Shapes(size, **options), _of(one, size, **options)]
        # What [data] cannot say: of the tissues' voxels, mm, for whoever registers others.
        self.spacing_mm = ((1.0,) * len(size), (2.0,) * len(size))
        if pairs:
            two = [
                patch
                for first, second in combinations(sorted(heads), 2)
                if first.rpartition("_")[2] == second.rpartition("_")[2]  # voxels of one size
                for patch in _cut(*_together(heads[first], heads[second]), size)
            ]
            self.kinds[1:1] = [_of(two, size, **options | {"amplitude": OTHERWISE})]
            self.kinds.append(self.kinds[1])
        self.label_values = range(1, 1 + max(max(kind.label_values) for kind in self.kinds))

    def __len__(self) -> int:
        return len(self.kinds[0])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.kinds[index % len(self.kinds)][index]


def _of(patches: list[tuple[np.ndarray, ...]], size: list[int], **options: Any) -> Shapes:
    labels, images = zip(*patches, strict=True)
    return Shapes(size, maps=labels, images=images, **options)


def _together(*heads: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Two heads as one: tissues, which both have, deep structures being grey matter; images."""
    labels = np.stack([np.where(head[0] > 3, 1, head[0]) for head in heads])
    return labels, np.stack([head[1] for head in heads])


def _read(path: Path) -> np.ndarray:
    """Labels as they are, intensities as shares of the largest."""
    values = np.asarray(nib.load(path).dataobj)
    return values / np.float32(values.max()) if "_t1" in path.name else values


def _cut(labels: np.ndarray, image: np.ndarray, size: list[int]) -> list[tuple[np.ndarray, ...]]:
    """Patches that cover (..., *S), at both ends of each axis and in the middle."""
    if len(size) == 3:
        return _patches(labels, image, size)
    planes = range(EVERY, labels.shape[-1] - EVERY, EVERY)
    return [p for z in planes for p in _patches(labels[..., z], image[..., z], size)]


def _patches(
    labels: np.ndarray, image: np.ndarray, size: list[int]
) -> list[tuple[np.ndarray, ...]]:
    """None where the label map is the smaller one."""
    shape = labels.shape[-len(size) :]
    if any(n < s for n, s in zip(shape, size, strict=True)):
        return []
    corners = [sorted({0, (n - s) // 2, n - s}) for n, s in zip(shape, size, strict=True)]
    boxes = [
        (..., *(slice(a, a + s) for a, s in zip(corner, size, strict=True)))
        for corner in product(*corners)
    ]
    return [(labels[box], image[box]) for box in boxes if (labels[box] > 0).mean() > 0.2]


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
    closed: np.ndarray = binary_fill_holes(binary_closing(mask, iterations=4))
    return closed


def main(heads: str, out: str) -> None:
    Path(out).mkdir(parents=True, exist_ok=True)
    for name, labels in tissues(Path(heads)).items():
        image = np.asarray(nib.load(Path(heads) / f"{name}_t1.nii.gz").dataobj)
        for spacing in (1, 2):
            seen = gaussian_filter(image.astype(np.float32), 0.4 * (spacing - 1))
            for end, values in (("", labels), ("_t1", seen.round().astype(np.uint8))):
                coarse = values[::spacing, ::spacing, ::spacing]
                found = nib.Nifti1Image(coarse, np.diag([spacing, spacing, spacing, 1]))
                nib.save(found, Path(out) / f"{name}_{spacing}mm{end}.nii.gz")


if __name__ == "__main__":
    main(*sys.argv[1:])
