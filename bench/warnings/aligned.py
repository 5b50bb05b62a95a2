"""Pairs that lie where they belong: the heads that ship, hearts, MR / simulated CT.

The latter two are read from a folder (docs/data.md); what it lacks is left out.
"""

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from diffreg.data.geometry import Image
from diffreg.data.images import read_image
from diffreg.fields import invert

ROOT = Path(__file__).parents[2]
HEADS = ROOT / "diffreg" / "demo" / "heads"
sys.path.insert(0, str(ROOT / "bench" / "compare"))
from pairs import CROPS, middle_of_motion, window_of  # noqa: E402


@dataclass(frozen=True)
class Aligned:
    """A pair that lies where it belongs.

    Args:
        name: of the pair.
        subject: whose images they are; all heads are one subject, for all pairs share two people.
        collection: "heads", "hearts" or "MR / simulated CT".
        similarity: what is minimised.
        moving, fixed: the images.
        wide: the moving image with all that was seen round it.
        truth: (1, 2, *S), fixed voxels; None: not known.
    """

    name: str
    subject: str
    collection: str
    similarity: str
    moving: Image
    fixed: Image
    wide: Image
    truth: Tensor | None = None


def aligned_pairs(data: Path | None) -> list[Aligned]:
    """All of them, collection by collection.

    Args:
        data: holds cardiac/ and ctmr/; None: the heads that ship are all there is.
    """
    pairs = heads()
    if data is not None:
        pairs += [*hearts(data / "cardiac"), *mr_and_simulated_ct(data / "ctmr")]
    return pairs


def heads() -> list[Aligned]:
    """Slices of a person and a template, within a contrast and across."""
    pairs = []
    for k in range(21):
        kinds = [("colin27_t1", "mni152_t1", "ncc"), ("mni152_t1", "colin27_t1", "ncc")]
        across = ("colin27_t1", "mni152_gm", "pls" if k % 2 else "mi")
        for moving, fixed, similarity in (kinds[k % 2], across):
            images = [read_image(HEADS / f"{name}.nii.gz", k) for name in (moving, fixed)]
            name = f"{moving} to {fixed}, slice {k}"
            pairs.append(Aligned(name, "heads", "heads", similarity, *images, images[0]))
    return pairs


def hearts(folder: Path) -> list[Aligned]:
    """End-systole to end-diastole, cut round what moves; no label is looked at."""
    if not folder.is_dir():
        return []
    with (folder / "ed_es_pairs.csv").open() as file:
        rows = list(csv.DictReader(file))
    pairs, cines = [], {}
    for row in rows:
        patient, k = row["patient"], int(row["slice"])
        if patient not in cines:
            values = nib.load(folder / f"{patient}_cine.nii.gz").dataobj
            cines[patient] = np.asarray(values, np.float32)
        cine, spacing = cines[patient], float(row["px_mm"])
        window = window_of(middle_of_motion(cine), cine.shape[:2], CROPS["variance"])
        frames = [cine[:, :, k, int(row[phase])] for phase in ("es", "ed")]
        start = [edge.start for edge in window]
        whole = [_image(frame, spacing, [-s for s in start]) for frame in frames]
        cut = [_image(frame[window], spacing, [0, 0]) for frame in frames]
        name = f"{patient}, slice {k}"
        pairs.append(Aligned(name, patient, "hearts", "ncc", *cut, whole[0]))
    return pairs


def mr_and_simulated_ct(folder: Path) -> list[Aligned]:
    """A CT image simulated from an MR image and bent, to that image; the truth is known."""
    if not folder.is_dir():
        return []
    with np.load(folder / "simulated_120.npz") as held:
        items, bent = held["items"], held["disp"].astype(np.float32)
        moving, fixed = (held[name].astype(np.float32) for name in ("ct_moving", "mr"))
    pairs = []
    for k in range(0, len(items), 4):
        patient = str(items[k]).partition(":")[0]
        images = [_image(array[k], 1.367188, [0, 0]) for array in (moving, fixed)]
        truth = invert(torch.from_numpy(bent[k : k + 1]), 60)
        similarity = "pls" if k % 8 else "mi"
        about = str(items[k]), patient, "MR / simulated CT", similarity
        pairs.append(Aligned(*about, *images, images[0], truth))
    return pairs


def _image(array: np.ndarray, spacing: float, first: list[int]) -> Image:
    """An image whose first voxel is voxel `first` of the grid that all images of a pair are on."""
    affine = np.diag([spacing, spacing, 1.0, 1.0])
    affine[:2, 3] = spacing * np.array(first)
    return Image(torch.from_numpy(np.ascontiguousarray(array))[None, None], affine)
