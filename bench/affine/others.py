"""Other images than heads of one contrast at 2 mm: each gives a few figures."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from cases import Case, apart, heads, image, misplacing, moved, places

from diffreg.data.geometry import Image
from diffreg.data.resampling import resample_to
from diffreg.metrics import dice
from diffreg.registration import register_affine

Figures = dict[str, float]


def returned(case: Case, count: int, similarity: str, kind: str = "affine") -> Figures:
    """Of so many misplacings: how far from the map without one."""
    goal = register_affine(case.moving, case.fixed, kind, similarity).matrix
    errors, seconds = [], []
    for number in range(count):
        generator = np.random.default_rng(2000 + number)
        there = moved(case, misplacing(generator, case.points.mean(0)))
        begin = time.thread_time()
        found = register_affine(there.moving, there.fixed, kind, similarity)
        seconds.append(time.thread_time() - begin)
        errors.append(apart(np.linalg.solve(there.misplacing, found.matrix), goal, case.points))
    return {
        "cases": count,
        "within 1 mm": sum(error < 1 for error in errors),
        "median, mm": statistics.median(errors),
        "worst, mm": max(errors),
        "median, CPU s": statistics.median(seconds),
        "worst, CPU s": max(seconds),
    }


def at_1_mm(data: Path) -> Figures:
    return returned(heads(data, "1116", "1011", "brain1mm"), 8, "ncc")


def grey_matter(data: Path) -> Figures:
    """T1 to another head's grey matter, and how far that is from the map to its T1."""
    t1, grey, own = (
        image(data / "volumes" / "free" / f"{name}.nii.gz")
        for name in ("colin27_t1", "mni152_gm", "mni152_t1")
    )
    points = places(own.affine, own.data[0, 0].numpy() > 0)
    found = {}
    for name, fixed, similarity in (("grey", grey, "mi"), ("T1", own, "ncc")):
        found[name] = register_affine(t1, fixed, similarity=similarity).matrix
    case = Case("colin27 -> grey matter", t1, grey, points, np.eye(4))
    distance = {"from ncc to the T1, mm": apart(found["grey"], found["T1"], points)}
    return returned(case, 20, "mi") | distance


def slices(data: Path) -> Figures:
    """MR and simulated CT of the heart, misplaced in the plane by up to 30 degrees, 30 px, 15 %."""
    pairs, errors, seconds = np.load(data / "ctmr" / "simulated_120.npz"), [], []
    points = places(np.eye(4), np.ones((160, 160, 1), bool), 25)
    for number in range(0, 120, 6):
        ct, mr = (
            Image(torch.from_numpy(pairs[name][number]).float()[None, None], np.eye(4))
            for name in ("ct_moving", "mr")
        )
        world = in_plane(np.random.default_rng(number), points.mean(0))
        goal = register_affine(ct, mr, similarity="mi").matrix
        begin = time.thread_time()
        found = register_affine(replace(ct, affine=world), mr, similarity="mi").matrix
        seconds.append(time.thread_time() - begin)
        errors.append(apart(np.linalg.solve(world, found), goal, points))
    return {
        "cases": len(errors),
        "within 1 px": sum(error < 1 for error in errors),
        "median, px": statistics.median(errors),
        "worst, px": max(errors),
        "median, CPU s": statistics.median(seconds),
    }


def in_plane(generator: np.random.Generator, centre: np.ndarray) -> np.ndarray:
    angle = np.radians(generator.uniform(-30, 30))
    world = np.eye(4)
    world[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    world[:2, :2] *= 1 + generator.uniform(-0.15, 0.15, 2)
    shift = generator.normal(size=2)
    shift *= generator.uniform(0, 30) / np.linalg.norm(shift)
    world[:2, 3] = centre[:2] + shift - world[:2, :2] @ centre[:2]
    return world


def labelled(folder: str, names: list[tuple[str, str]], similarity: str) -> Callable:
    """Dice of the first label before and after, each kind of map."""

    def measured(data: Path) -> Figures:
        figures: Figures = {"pairs": len(names)}
        for kind in ("none", "rigid", "affine"):
            values = []
            for pair in names:
                path = data / "volumes" / folder
                moving, fixed = (image(path / f"{name}_t1.nii.gz") for name in pair)
                label, true = (image(path / f"{name}_seg.nii.gz") for name in pair)
                world = register_affine(moving, fixed, kind, similarity).matrix
                warped = resample_to(label.placed(world), true, interpolation="nearest")
                values.append(dice(warped == 1, true.data == 1, [1])[1])
            figures[f"mean Dice, {kind}"] = statistics.fmean(values)
        return figures

    return measured


HEARTS = [f"SCD000{n}01" for n in ("01", "02", "03", "04")]
PROSTATES = [f"{number:06d}" for number in range(25)]
OTHERS: dict[str, Callable[[Path], Figures]] = {
    "heads at 1 mm": at_1_mm,
    "T1 to grey matter, mi": grey_matter,
    "CT to MR slices (simulated CT), mi": slices,
    "hearts, end-systole to end-diastole, ncc": labelled(
        "cardiac3d", [(f"{name}_es", f"{name}_ed") for name in HEARTS], "ncc"
    ),
    "prostates, MR to ultrasound, mi": labelled(
        "prostate", [(f"{name}_mr", f"{name}_us") for name in PROSTATES], "mi"
    ),
}
