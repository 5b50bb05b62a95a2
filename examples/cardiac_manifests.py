"""Cine MR as images and manifests that `diffreg train`, `evaluate` and `register` take.

    python examples/cardiac_manifests.py CINE_FOLDER OUT --validate SCD0000401 --test SCD0000301

CINE_FOLDER holds PATIENT_cine.nii.gz (X, Y, slices, phases), PATIENT_endo.nii.gz, label maps of the
same size, and ed_es_pairs.csv (patient, slice, ed, es): phases in which an expert drew the label.
OUT gets one volume a phase, cut to a window around what moves (no label is looked at), and

    train.csv       the phases of the other patients: image, group, slice
    validate.csv    end-systole to end-diastole of one patient, with labels
    test.csv        the same of another one
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

FIXED = ("moving", "fixed", "moving_label", "fixed_label", "group", "slice")


def window(cine: Any, size: int) -> tuple[slice, slice]:
    """The square around the centre of what changes over time."""
    motion = np.asarray(cine.dataobj, np.float32).std(axis=3).mean(axis=2)
    motion = np.where(motion > np.percentile(motion, 90), motion, 0)
    corners = []
    for axis in (0, 1):
        line = motion.sum(axis=1 - axis)
        centre = float((line * np.arange(len(line))).sum() / line.sum())
        corners.append(int(np.clip(round(centre - size / 2), 0, len(line) - size)))
    return slice(corners[0], corners[0] + size), slice(corners[1], corners[1] + size)


def write_phases(folder: Path, out: Path, patient: str, size: int) -> int:
    """One volume a phase, of the images and of the labels; returns the number of phases."""
    cine, label = (nib.load(folder / f"{patient}_{kind}.nii.gz") for kind in ("cine", "endo"))
    rows, columns = window(cine, size)
    for phase in range(cine.shape[3]):
        for image, kind in ((cine, "image"), (label, "label")):
            # slicer moves the origin of the affine with the window
            nib.save(
                image.slicer[rows, columns, :, phase], out / f"{patient}_{kind}{phase:02d}.nii"
            )
    return int(cine.shape[3])


def write_table(path: Path, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    print(f"{path}: {len(rows)} rows")


def labelled(patient: str, pair: dict[str, str]) -> tuple[str, ...]:
    """End-systole to end-diastole: the row of a pair in which an expert drew."""
    es, ed = (f"{int(pair[name]):02d}" for name in ("es", "ed"))
    files = [f"{patient}_{kind}{phase}.nii" for kind in ("image", "label") for phase in (es, ed)]
    return (*files, patient, pair["slice"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="CINE_FOLDER")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--validate", required=True, metavar="PATIENT")
    parser.add_argument("--test", required=True, metavar="PATIENT")
    parser.add_argument("--every", type=int, default=2, help="train on every so many phases (2)")
    parser.add_argument("--size", type=int, default=112, help="of the window, voxels (112)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.folder / "ed_es_pairs.csv").open() as file:
        pairs = list(csv.DictReader(file))
    training = []
    for path in sorted(options.folder.glob("*_cine.nii.gz")):
        patient = path.name.removesuffix("_cine.nii.gz")
        phases = write_phases(options.folder, options.out, patient, options.size)
        rows = [labelled(patient, pair) for pair in pairs if pair["patient"] == patient]
        if patient == options.validate:
            write_table(options.out / "validate.csv", FIXED, rows)
        elif patient == options.test:
            write_table(options.out / "test.csv", FIXED, rows)
        else:
            # The slices in which the heart is, as the labelled ones say.
            slices = sorted({int(row[-1]) for row in rows})
            training += [
                (f"{patient}_image{phase:02d}.nii", patient, k)
                for k in slices
                for phase in range(0, phases, options.every)
            ]
    write_table(options.out / "train.csv", ("image", "group", "slice"), training)


if __name__ == "__main__":
    main()
