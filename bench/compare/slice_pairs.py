"""Pairs of slices of people whom no network that ships has seen, as files: docs/data.md."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pairs
import torch
from labelled import SMALLEST_LABEL, Pair, in_both, read_pairs

from diffreg.fields import invert

PERSON = "SCD0000301"  # the split of lunet-cardiac-mr and of lunet-mr-ct, by their cards
HEARTS, SIMULATED = "slices_mr", "slices_ctmr"
BODY = -500  # HU: where an error counts
HEADS = "brain2mm"
PLANES = (0.45, 0.6)  # of a head's height
End = tuple[str, Any, Any]  # ending of its name, image, label


def write_slices(data: Path, out: Path) -> dict[str, list[Pair]]:
    """group -> its pairs, written to `out`; none of what `data` does not hold.

    Args:
        data: the folder of docs/data.md, of which `cardiac` and `ctmr` are read.
    """
    cardiac, simulated = data / "cardiac", data / "ctmr" / "simulated_120.npz"
    spacing = _spacing(cardiac / "ed_es_pairs.csv")
    if spacing is None:
        return {HEARTS: [], SIMULATED: []}
    return {
        HEARTS: heart_slices(cardiac, out, PERSON),
        SIMULATED: _simulated(simulated, spacing, out) if simulated.exists() else [],
    }


def head_slices(data: Path, out: Path) -> list[Pair]:
    """Axial planes of the heads at 2 mm, two a pair, written to `out`."""
    found = []
    for pair in read_pairs(data / "volumes", HEADS):
        files = pair.moving, pair.fixed, pair.moving_label, pair.fixed_label
        volumes = [nib.load(path) for path in files]
        spacing = volumes[0].header.get_zooms()[0]
        for share in PLANES:
            k = round(share * volumes[0].shape[2])
            moving, fixed, *labels = (np.asarray(volume.dataobj)[..., k] for volume in volumes)
            kept = in_both(labels, SMALLEST_LABEL)
            ours, theirs = (np.where(np.isin(label, kept), label, 0) for label in labels)
            ends = ("moving", moving, ours), ("fixed", fixed, theirs)
            found.append(_written(HEADS, out / f"{pair.person}_{k}", *ends, spacing))
    return found


def heart_slices(folder: Path, out: Path, person: str | None = None) -> list[Pair]:
    """End-systole to end-diastole of a person or of all, cut round what moves, no label looked at.

    Args:
        folder: `cardiac` of docs/data.md.
    """
    return [
        _written(
            HEARTS,
            out / f"{pair.patient}_{pair.slice:02d}",
            ("es", pair.moving, pair.moving_label),
            ("ed", pair.fixed, pair.fixed_label),
            pair.spacing,
        )
        for pair in pairs.read_pairs(folder, "variance")
        if person in (None, pair.patient)
    ]


def _simulated(path: Path, spacing: float, out: Path) -> list[Pair]:
    """CT to MR, with the displacement that is to be found: NaN outside the body."""
    with np.load(path) as file:
        mine = [k for k, item in enumerate(file["items"]) if item.startswith(f"{PERSON}:")]
        held = {name: file[name][mine] for name in file.files}
    found = []
    for k, item in enumerate(held["items"]):
        stem = out / str(item).replace(":", "_")
        true = invert(torch.from_numpy(held["disp"][k : k + 1].astype(np.float32)), 60)[0].numpy()
        truth = stem.with_name(f"{stem.name}_true.npy")
        np.save(truth, np.where(held["ct_aligned"][k] > BODY, true, np.nan))
        moving = ("ct", held["ct_moving"][k], held["endo_moving"][k])
        pair = _written(SIMULATED, stem, moving, ("mr", held["mr"][k], held["endo"][k]), spacing)
        found.append(replace(pair, truth=truth))
    return found


def _written(group: str, stem: Path, moving: End, fixed: End, spacing: float) -> Pair:
    paths = {}
    for end, (name, *images) in {"moving": moving, "fixed": fixed}.items():
        for kind, image in zip(("", "_label"), images, strict=True):
            path = paths[f"{end}{kind}"] = stem.with_name(f"{stem.name}_{name}{kind}.nii.gz")
            array = np.squeeze(np.asarray(image))
            array = array.astype(np.uint8) if kind else array
            nib.save(nib.Nifti1Image(array, np.diag([spacing, spacing, 1, 1])), path)
    return Pair(group, **paths)


def _spacing(table: Path) -> float | None:
    """mm, along both axes of the person's slices; None where there are none."""
    if not table.exists():
        return None
    with table.open() as file:
        mine = [row for row in csv.DictReader(file) if row["patient"] == PERSON]
    return float(mine[0]["px_mm"]) if mine else None
