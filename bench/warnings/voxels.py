"""Networks that ship on voxels that they were not trained on, beside the variational method.

    python bench/warnings/voxels.py VOLUMES CARDIAC [--pairs N]

VOLUMES has pairs.csv, CARDIAC ed_es_pairs.csv (docs/data.md). The images are averaged or
interpolated onto voxels FACTORS times as long, registered there without an affine start, and the
displacement is brought back onto the labels' own grid, so that Dice means the same in every row.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "bench" / "compare"))
import labelled  # noqa: E402
import pairs as cardiac  # noqa: E402

from diffreg import register  # noqa: E402
from diffreg.data.geometry import Image  # noqa: E402
from diffreg.data.images import read_image  # noqa: E402
from diffreg.metrics import dice, shared_labels  # noqa: E402
from diffreg.ops import warp  # noqa: E402
from diffreg.training import load_pretrained  # noqa: E402

Case = tuple[list[Tensor], list[Tensor], np.ndarray]  # images, labels, affine
CUBES = (2 / 1.37, 2 / 1.37, 0.2)  # hearts of 1.37 x 1.37 x 10 mm as cubes of 2 mm
FACTORS = {
    "brain2mm": [(1, 1, k) for k in (1, 1.5, 2, 3, 4, 5)] + [(k, k, k) for k in (1.5, 2, 3)],
    "cardiac3d": [(1, 1, 1), CUBES],
    "cine": [(1, 1), (0.5, 0.5), (0.67, 0.67), (2, 2), (3, 3), (1, 2), (1, 3)],
}


def volumes(folder: Path, group: str) -> Iterator[Case]:
    for pair in labelled.read_pairs(folder, group):
        images = [read_image(path) for path in (pair.moving, pair.fixed)]
        labels = [read_image(path, label=True) for path in (pair.moving_label, pair.fixed_label)]
        data = ([image.data for image in some] for some in (images, labels))
        yield *data, images[1].affine


def slices(folder: Path) -> Iterator[Case]:
    for pair in cardiac.read_pairs(folder, "variance")[::3]:
        images, labels = [pair.moving, pair.fixed], [pair.moving_label, pair.fixed_label]
        yield images, labels, np.diag([pair.spacing, pair.spacing, 1, 1])


def onto(image: Tensor, size: list[int]) -> Tensor:
    """Averaged where the voxels get longer, interpolated where they get shorter."""
    coarser = all(n <= m for n, m in zip(size, image.shape[2:], strict=True))
    if coarser:
        return F.interpolate(image, size, mode="area")
    mode = "trilinear" if len(size) == 3 else "bilinear"
    return F.interpolate(image, size, mode=mode, align_corners=False)


def measured(case: Case, factors: tuple[float, ...], methods: dict[str, dict]) -> list[float]:
    """Mean Dice before, and after each method."""
    images, (moving, fixed), affine = case
    whole = list(fixed.shape[2:])
    size = [round(n / f) for n, f in zip(whole, factors, strict=True)]
    times = torch.tensor([n / m for n, m in zip(whole, size, strict=True)])
    placed = affine.copy()
    placed[:3, : len(size)] *= times.numpy()
    coarse = [Image(onto(image.float(), size), placed) for image in images]
    labels = shared_labels(moving, fixed)
    found = [np.mean(list(dice(moving, fixed, labels).values()))]
    for options in methods.values():
        u = register(*coarse, affine="none", **options).displacement
        mode = "trilinear" if len(size) == 3 else "bilinear"
        u = F.interpolate(u, whole, mode=mode, align_corners=False)
        u = u * times.float().reshape(1, -1, *[1] * len(size))
        warped = warp(moving.float(), u, "nearest").to(fixed.dtype)
        found.append(np.mean(list(dice(warped, fixed, labels).values())))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("volumes", type=Path)
    parser.add_argument("cardiac", type=Path)
    parser.add_argument("--pairs", type=int, help="of each set of volumes, the first (all)")
    options = parser.parse_args()
    for name, several in FACTORS.items():
        flat = name == "cine"
        network = load_pretrained("lunet-cardiac-mr" if flat else "lunet-any")
        others = {"variational": {"preset": "slice"} if flat else {}}
        methods = {"network": network, "+ 10 steps": {**network, "refine": 10}, **others}
        cases = list(slices(options.cardiac) if flat else volumes(options.volumes, name))
        cases = cases if flat else cases[: options.pairs]
        for factors in several:
            rows = np.mean([measured(case, factors, methods) for case in cases], 0)
            said = [f"{d:.3f} {m}" for m, d in zip(("before", *methods), rows, strict=True)]
            words = " x ".join(f"{f:.3g}" for f in factors)
            print(f"{name}, voxels {words} times as long, {len(cases)} pairs: {', '.join(said)}")


if __name__ == "__main__":
    main()
