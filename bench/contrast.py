"""How well correlation and correlation ratio tell one contrast from two; the edges in common.

    python bench/contrast.py DATA      prints and keeps bench/results/contrast.json

DATA is a folder with the slices and volumes of the study; pairs are compared as their headers have
them, which is near enough for most.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

import diffreg
from diffreg.data.geometry import Image
from diffreg.data.prepare import prepare
from diffreg.registration.contrast import EDGES, WITHIN, contrast, edges_in_common

sys.path.insert(0, str(Path(__file__).parent / "compare"))
from contrasts import other

RESULT = Path(__file__).parent / "results" / "contrast.json"
ACROSS = ("abdomen", "prostate")  # folders of pairs of two modalities
HEADS, FRAMED = "brain2mm", ("prostate_mrus", "abdomen_ctmr")
# Group, whether the contrasts differ, moving, fixed, and a mask where only a part is compared.
Case = tuple[str, bool, Image, Image] | tuple[str, bool, Image, Image, Image]


def volumes(data: Path) -> Iterator[Case]:
    """The listed pairs of volumes, also within the fixed labels, and fifteen more of heads."""
    folder = data / "volumes"
    for row in csv.DictReader((folder / "pairs.csv").open()):
        across = row["moving"].startswith(ACROSS)
        pair = _read(folder / row["moving"], folder / row["fixed"])
        yield row["group"], across, *pair
        if row["fixed_label"] and row["group"] != "brain1mm":
            labels = diffreg.read_image(folder / row["fixed_label"], label=True)
            yield f"{row['group']}, within labels", across, *pair, labels
    heads, draw = sorted((folder / "brain2mm").glob("*_t1.nii.gz")), random.Random(0)
    for _ in range(15):
        yield "brain2mm, other pairs", False, *_read(*draw.sample(heads, 2))


def changed(data: Path) -> Iterator[Case]:
    """Heads in two contrasts, whole, within a mask and one of them upside down; and a black frame
    round both images of an organ, as exported ultrasound has."""
    folder = data / "volumes"
    for row in csv.DictReader((folder / "pairs.csv").open()):
        group = row["group"]
        if group not in (HEADS, *FRAMED):
            continue
        moving, fixed = _read(folder / row["moving"], folder / row["fixed"])
        if group in FRAMED:
            yield f"{group}, in a frame", True, *(_framed(image) for image in (moving, fixed))
            continue
        values = other(moving.data.numpy())
        moving = replace(moving, data=torch.from_numpy(values))
        inside = replace(fixed, data=(fixed.data > 0).float())
        upside = replace(moving, data=moving.data.flip(-1))
        yield "heads, two contrasts", True, moving, fixed
        yield "heads, two contrasts, masked", True, moving, fixed, inside
        yield "heads, two contrasts, one upside down", True, upside, fixed


def _framed(image: Image) -> Image:
    """A tenth of black on each side; where the voxels lie is of no matter here."""
    widths = [n // 10 for n in reversed(image.shape) for _ in range(2)]
    return diffreg.image(torch.nn.functional.pad(image.data, widths)[0, 0], spacing=image.spacing)


def free_heads(data: Path) -> Iterator[Case]:
    """The two free heads with each other and with the tissue maps of one of them."""
    folder = data / "volumes" / "free"
    one, other = (folder / f"{name}_t1.nii.gz" for name in ("colin27", "mni152"))
    yield "free heads", False, *_read(one, other)
    for tissue in ("gm", "wm"):
        for head in (one, other):
            pair = _read(head, folder / f"mni152_{tissue}.nii.gz")
            yield f"free heads to {tissue}", True, *pair
            yield f"free heads to {tissue}", True, *pair[::-1]
    for k in range(0, 21, 2):
        names = ("colin27_t1", "mni152_t1", "mni152_gm")
        t1, fixed, grey = (diffreg.read_image(data / "brain" / f"{n}.nii.gz", k) for n in names)
        yield "slices of heads", False, t1, fixed
        yield "slices of heads to gm", True, t1, grey


def slices(data: Path) -> Iterator[Case]:
    """Hearts in two phases, and MR with simulated CT."""
    found = np.load(data / "ctmr" / "simulated_120.npz")
    for k in range(0, 120, 4):
        images = diffreg.image(found["ct_moving"][k]), diffreg.image(found["mr"][k])
        yield "MR / simulated CT", True, *images
    for row in list(csv.DictReader((data / "cardiac" / "ed_es_pairs.csv").open()))[::2]:
        file = nib.load(data / "cardiac" / f"{row['patient']}_cine.nii.gz")
        phases = (file.dataobj[:, :, int(row["slice"]), int(row[name])] for name in ("es", "ed"))
        yield "hearts in two phases", False, *(diffreg.image(np.asarray(p)) for p in phases)


def _read(*paths: Path) -> tuple[Image, Image]:
    moving, fixed = (diffreg.read_image(path) for path in paths)
    return moving, fixed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for cases in (volumes, changed, free_heads, slices):
        for group, across, *images in cases(data):
            pair = prepare(*images)
            told = pair.moving_values, pair.fixed_values, pair.mask
            r, ratio = contrast(*told)
            edges = edges_in_common(*told)
            found = {"r": round(r, 4), "ratio": round(ratio, 4), "edges": round(edges or 0, 4)}
            rows.append({"group": group, "across": across, **found})
    for group in dict.fromkeys(row["group"] for row in rows):
        own = [row for row in rows if row["group"] == group]
        parts = sorted(share(row) for row in own)
        wrong = sum((share(row) < WITHIN) != row["across"] for row in own)
        kind = "two contrasts" if own[0]["across"] else "one contrast"
        middle = parts[len(parts) // 2]
        edges = sorted(row["edges"] for row in own)
        few = sum(each < EDGES for each in edges)
        print(
            f"{group}: {len(own)} pairs of {kind}, r^2 / eta^2 {parts[0]:.2f} to {parts[-1]:.2f}, "
            f"median {middle:.2f}; {wrong} taken for the other; edges in common {edges[0]:.3f} to "
            f"{edges[-1]:.3f}, {few} below {EDGES}"
        )
    RESULT.write_text(
        json.dumps({"within": WITHIN, "least_edges": EDGES, "pairs": rows}, indent=0) + "\n"
    )


def share(row: dict[str, Any]) -> float:
    """The squared correlation in parts of the correlation ratio; 0 where intensities fall."""
    return row["r"] ** 2 / row["ratio"] if row["r"] > 0 and row["ratio"] > 0 else 0.0


if __name__ == "__main__":
    main()
