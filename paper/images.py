"""The images of the studies: frames to train on, and pairs with labels or a known truth to test on.

Cardiac MR and MR / simulated CT are read from a folder (docs/data.md); shapes are generated, and
brain slices ship with the package. Everything is float32 in [0, 1], displacements in voxels.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffreg.data.normalization import normalize
from diffreg.data.synthetic import random_velocity, random_warp
from diffreg.fields import integrate, invert
from diffreg.ops import warp

ROOT = Path(__file__).parents[1]
CACHE = ROOT / "build" / "paper" / "images"


@dataclass(frozen=True)
class Frames:
    """Images to train on: every two of one series make a pair.

    Args:
        images: (K, H, W).
        series: (K,), the slice of a patient.
        patients: of each image.
    """

    images: Tensor
    series: Tensor
    patients: tuple[str, ...]

    def only(self, keep: list[int]) -> Frames:
        """These images of it."""
        patients = tuple(self.patients[k] for k in keep)
        return Frames(self.images[keep], self.series[keep], patients)

    def without(self, *patients: str) -> Frames:
        """All images of the others."""
        return self.only([k for k, p in enumerate(self.patients) if p not in patients])


@dataclass(frozen=True)
class Pairs:
    """Pairs, (P, 1, H, W) each.

    Args:
        names, patients: of each pair.
        moving, fixed: images.
        moving_label, fixed_label: 0 or 1; None where there are none. NaN of a pair without any.
        truth: (P, 2, H, W), the displacement to find; None: it is not known.
        mask: where errors count; None: everywhere.
        spacing: of each pair, the length of a voxel; None: 1.
    """

    names: tuple[str, ...]
    patients: tuple[str, ...]
    moving: Tensor
    fixed: Tensor
    moving_label: Tensor | None = None
    fixed_label: Tensor | None = None
    truth: Tensor | None = None
    mask: Tensor | None = None
    spacing: tuple[float, ...] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def only(self, keep: list[int]) -> Pairs:
        """These pairs of it."""
        tensors = ("moving", "fixed", "moving_label", "fixed_label", "truth", "mask")
        parts = {name: getattr(self, name) for name in tensors}
        return replace(
            self,
            names=tuple(self.names[k] for k in keep),
            patients=tuple(self.patients[k] for k in keep),
            spacing=None if self.spacing is None else tuple(self.spacing[k] for k in keep),
            **{name: None if part is None else part[keep] for name, part in parts.items()},
        )

    def of(self, *patients: str) -> Pairs:
        """The pairs of these patients."""
        return self.only([k for k, p in enumerate(self.patients) if p in patients])

    def without(self, *patients: str) -> Pairs:
        """The pairs of the others."""
        return self.only([k for k, p in enumerate(self.patients) if p not in patients])


def cardiac(data: Path) -> tuple[Frames, Frames, Pairs]:
    """Short-axis cine MR: every phase of the labelled slices, the 160 images, the labelled pairs.

    Args:
        data: holds cardiac/, as docs/data.md describes it.
    """
    held = _cached("cardiac", lambda: _read_cardiac(data / "cardiac"))
    where = [tuple(text.split(":")) for text in held["where"]]  # patient, slice, phase
    images = normalize(torch.from_numpy(held["images"].astype(np.float32))[:, None])[:, 0]
    numbers = {key: n for n, key in enumerate(dict.fromkeys(w[:2] for w in where))}
    series = torch.tensor([numbers[w[:2]] for w in where])
    frames = Frames(images, series, tuple(w[0] for w in where))
    mono = set(held["mono"])
    found = frames.only([k for k, w in enumerate(where) if ":".join(w) in mono])
    assert len(found.images) == len(mono), "mono160.csv names images that are not labelled slices"
    places = {":".join(w): k for k, w in enumerate(where)}
    labels = torch.from_numpy(held["labels"]).float()[:, None]
    moving, fixed = ([places[text] for text in held[kind]] for kind in ("es", "ed"))
    pairs = Pairs(
        tuple(":".join(where[k][:2]) for k in fixed),
        tuple(where[k][0] for k in fixed),
        frames.images[moving][:, None],
        frames.images[fixed][:, None],
        labels[moving],
        labels[fixed],
        spacing=tuple(held["spacing"].tolist()),
    )
    return frames, found, pairs


def _cached(name: str, read) -> dict[str, np.ndarray]:
    path = CACHE / f"{name}.npz"
    if not path.exists():
        from diffreg.system.atomic import replacing

        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **read())
    with np.load(path) as held:
        return dict(held)


def _read_cardiac(folder: Path) -> dict[str, np.ndarray]:
    import nibabel as nib

    sys.path.insert(0, str(ROOT / "bench" / "compare"))
    from pairs import CROPS, middle_of_motion, window_of

    def rows(name: str) -> list[dict[str, str]]:
        with (folder / name).open() as file:
            return list(csv.DictReader(file))

    labelled, mono = rows("ed_es_pairs.csv"), rows("mono160.csv")
    slices = {(row["patient"], int(row["slice"])) for row in (*labelled, *mono)}
    images, labels, where = [], [], []
    for patient in sorted({patient for patient, _ in slices}):
        cine, endo = (
            np.asarray(nib.load(folder / f"{patient}_{kind}.nii.gz").dataobj)
            for kind in ("cine", "endo")
        )
        window = window_of(
            middle_of_motion(cine.astype(np.float32)), cine.shape[:2], CROPS["variance"]
        )
        for k in sorted(k for p, k in slices if p == patient):
            for phase in range(cine.shape[3]):
                images.append(cine[:, :, k, phase][window])
                labels.append(endo[:, :, k, phase][window] > 0)
                where.append(f"{patient}:{k}:{phase}")
    return {
        "images": np.stack(images).astype(np.int16),
        "labels": np.stack(labels),
        "where": np.array(where),
        "mono": np.array([f"{r['patient']}:{r['slice']}:{r['phase']}" for r in mono]),
        "es": np.array([f"{r['patient']}:{r['slice']}:{r['es']}" for r in labelled]),
        "ed": np.array([f"{r['patient']}:{r['slice']}:{r['ed']}" for r in labelled]),
        "spacing": np.array([float(row["px_mm"]) for row in labelled]),
    }


def mr_and_simulated_ct(data: Path) -> Pairs:
    """120 pairs, 160 x 160: fixed is a real MR image, moving a CT image simulated from it and bent.

    The truth is the inverse of the displacement that bent it. Errors count inside the body.
    """
    with np.load(data / "ctmr" / "simulated_120.npz") as held:
        items = [str(item) for item in held["items"]]
        fixed = torch.from_numpy(held["mr"].astype(np.float32))[:, None]
        moving = torch.from_numpy(held["ct_moving"].astype(np.float32))[:, None]
        aligned = torch.from_numpy(held["ct_aligned"].astype(np.float32))[:, None]
        bent = torch.from_numpy(held["disp"].astype(np.float32))
        labels = [torch.from_numpy(held[k]).float()[:, None] for k in ("endo_moving", "endo")]
    for label in labels:
        label[(labels[1].amax((1, 2, 3)) == 0)] = torch.nan  # of pairs without a label
    return Pairs(
        tuple(items),
        tuple(item.partition(":")[0] for item in items),
        normalize(moving),
        normalize(fixed),
        *labels,
        truth=invert(bent, 60),
        mask=(aligned > -500).float(),
    )


def bent_by_waves(pairs: Pairs, amplitude: float, wavelength: float, seed: int) -> Pairs:
    """The same pairs, their moving image brought back and bent by the flow of three plane waves.

    Args:
        pairs: with their truth.
        amplitude: standard deviation of the velocity's components, pixels.
        wavelength: the shortest, pixels; the longest is twice that.
        seed: of the waves' directions, lengths and phases.
    """
    assert pairs.truth is not None
    shape = tuple(pairs.fixed.shape[2:])
    bends, truths = [], []
    for k in range(len(pairs)):
        velocity = _waves(shape, amplitude, wavelength, np.random.default_rng([seed, k]))
        both = integrate(torch.cat([velocity, -velocity]))
        bends.append(both[:1])
        truths.append(both[1:])
    aligned = warp(pairs.moving, pairs.truth)
    return replace(
        pairs,
        moving=warp(aligned, torch.cat(bends)),
        truth=torch.cat(truths),
        moving_label=None,
        fixed_label=None,
    )


def _waves(shape, amplitude: float, wavelength: float, random: np.random.Generator) -> Tensor:
    """The sum of three plane waves a component, (1, 2, *shape)."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    components = []
    for _ in range(2):
        total = np.zeros(shape)
        for _ in range(3):
            turn, phase = random.uniform(0, 2 * np.pi, 2)
            length = wavelength * random.uniform(1, 2)
            along = rows * np.cos(turn) + columns * np.sin(turn)
            total += np.sin(2 * np.pi * along / length + phase)
        components.append(amplitude * total / np.sqrt(1.5))
    return torch.from_numpy(np.stack(components)[None]).float()


def shapes(count: int, seed: int, size: int = 64, reach: float = 8.0) -> Pairs:
    """Random unions of discs, ellipses and boxes, bent by a known field of up to `reach` voxels.

    moving(p + truth(p)) = fixed(p). The labels are the shapes.
    """
    random = np.random.default_rng([seed])
    parts: dict[str, list[Tensor]] = {"moving": [], "fixed": [], "truth": []}
    for _ in range(count):
        fixed = _drawn(_union(size, random))
        velocity = random_velocity((size, size), 1.0, size / 8, random)
        for _ in range(4):  # scaled until the displacement itself reaches as far as wanted
            field = integrate(velocity)
            velocity = velocity * (reach * random.uniform(0.75, 1) / field.norm(dim=1).max())
        both = integrate(torch.cat([velocity, -velocity]))
        parts["moving"].append(warp(fixed, both[:1]))
        parts["fixed"].append(fixed)
        parts["truth"].append(both[1:])
    return _of_shapes("shape", parts)


def disc_to_c(count: int, seed: int, size: int = 64) -> Pairs:
    """The classical test of large displacements: moving is a disc, fixed a C; the truth is open."""
    random = np.random.default_rng([seed])
    parts: dict[str, list[Tensor]] = {"moving": [], "fixed": []}
    for _ in range(count):
        radius = size * random.uniform(0.25, 0.33)
        middle = size / 2 + random.uniform(-2, 2, 2)
        place = _places(size) - middle[:, None, None]
        distance = np.hypot(*place)
        turn = random.uniform(0, 2 * np.pi)
        along = place[0] * np.cos(turn) + place[1] * np.sin(turn)
        across = np.abs(place[1] * np.cos(turn) - place[0] * np.sin(turn))
        hole = radius * random.uniform(0.45, 0.55) - distance
        gap = np.minimum(radius * random.uniform(0.25, 0.4) - across, along)
        parts["moving"].append(_drawn(radius * 0.9 - distance))
        parts["fixed"].append(_drawn(np.minimum(radius - distance, -np.maximum(hole, gap))))
    return _of_shapes("disc to C", parts)


def _of_shapes(name: str, parts: dict[str, list[Tensor]]) -> Pairs:
    moving, fixed = torch.cat(parts["moving"]), torch.cat(parts["fixed"])
    names = tuple(f"{name} {k}" for k in range(len(moving)))
    truth = torch.cat(parts["truth"]) if "truth" in parts else None
    labels = (moving > 0.5).float(), (fixed > 0.5).float()
    edges = ((fixed > 0.02) & (fixed < 0.98)).float()
    return Pairs(names, names, moving, fixed, *labels, truth=truth, mask=edges)


def _places(size: int) -> np.ndarray:
    return np.mgrid[:size, :size].astype(np.float64)


def _union(size: int, random: np.random.Generator) -> np.ndarray:
    """Signed distance, about, of some primitives: positive inside."""
    inside = np.full((size, size), -np.inf)
    for _ in range(random.integers(1, 4)):
        middle = size * random.uniform(0.3, 0.7, 2)
        place = _places(size) - middle[:, None, None]
        turn = random.uniform(0, np.pi)
        rows = place[0] * np.cos(turn) + place[1] * np.sin(turn)
        columns = place[1] * np.cos(turn) - place[0] * np.sin(turn)
        long, short = size * random.uniform(0.1, 0.22, 2)
        if random.random() < 0.5:  # a box, else an ellipse
            found = np.minimum(long - np.abs(rows), short - np.abs(columns))
        else:
            found = (1 - np.hypot(rows / long, columns / short)) * min(long, short)
        inside = np.maximum(inside, found)
    return inside


def _drawn(distance: np.ndarray) -> Tensor:
    """(1, 1, H, W): 1 inside, 0 outside, an edge of some voxels between."""
    return torch.from_numpy(1 / (1 + np.exp(-2 * distance))).float()[None, None]


def brain_slices() -> tuple[Frames, Pairs]:
    """Shipped slices: T1 of a person and of a template to train on; T1 to grey matter to test on.

    The grey-matter map is of the template: bent by a known field, it has a known truth.
    """
    import nibabel as nib

    folder = ROOT / "diffreg" / "demo" / "heads"
    names = ("colin27_t1", "mni152_t1", "mni152_gm")
    t1, template, grey = (
        normalize(
            torch.from_numpy(
                np.asarray(nib.load(folder / f"{name}.nii.gz").dataobj, np.float32)
            ).permute(2, 0, 1)[:, None]
        )
        for name in names
    )
    count = len(t1)
    frames = Frames(
        torch.cat([t1, template])[:, 0],
        torch.arange(count).repeat(2),
        tuple(f"slice {k}" for k in range(count)) * 2,
    )
    shape = tuple(grey.shape[2:])
    warps = [random_warp(shape, 3.0, 16.0, np.random.default_rng([k])) for k in range(count)]
    bent = warp(grey, torch.cat([w.displacement for w in warps]))
    pairs = Pairs(
        frames.patients[:count],
        frames.patients[:count],
        bent,
        template,
        (bent > 0.5).float(),
        (grey > 0.5).float(),
        truth=torch.cat([w.inverse for w in warps]),
        mask=(template > 0.05).float(),
    )
    return frames, pairs
