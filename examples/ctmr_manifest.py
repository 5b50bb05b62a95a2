"""MR and simulated CT as a manifest that `diffreg evaluate` and `register` take.

    python examples/ctmr_manifest.py DIR/ctmr/simulated_120.npz OUT --test SCD0000301

OUT gets the images, the displacements that are known (docs/data.md), all.csv and test.csv, in which
is one patient: moving, fixed, true_displacement, group.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

import diffreg
from diffreg.data.transforms import write_displacement
from diffreg.fields import invert

COLUMNS = ("moving", "fixed", "true_displacement", "group")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pairs", type=Path, metavar="NPZ")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--test", required=True, metavar="PATIENT")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with np.load(options.pairs) as held:
        found = {name: held[name] for name in ("ct_moving", "mr", "disp", "items")}
    rows = []
    for k, item in enumerate(found["items"]):
        names = [f"{k:03d}_{end}.nii.gz" for end in ("ct", "mr", "true")]
        for name, key in zip(names, ("ct_moving", "mr"), strict=False):
            nib.save(nib.Nifti1Image(found[key][k].astype(np.int16), np.eye(4)), options.out / name)
        true = invert(torch.from_numpy(found["disp"][k : k + 1].astype(np.float32)), 60)
        grid = diffreg.read_image(options.out / names[1])
        write_displacement(options.out / names[2], true, grid)
        rows.append((*names, str(item).partition(":")[0]))
    for name, some in (("all", rows), ("test", [r for r in rows if r[3] == options.test])):
        with (options.out / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *some])
        print(f"{options.out / name}.csv: {len(some)} rows")


if __name__ == "__main__":
    main()
