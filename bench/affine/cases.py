"""Pairs, and maps that misplace them; each case is drawn by its own number."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from split import PAIRS

from diffreg.data.geometry import Image
from diffreg.data.images import read_image

CUT = 0.4  # of an axis


@dataclass(frozen=True)
class Case:
    """A pair whose moving image was misplaced: T is found where T = misplacing T0."""

    name: str
    moving: Image
    fixed: Image
    points: np.ndarray  # (n, 3), in the head, RAS mm
    misplacing: np.ndarray  # (4, 4)
    moving_mask: Image | None = None


@cache
def image(path: Path) -> Image:
    return read_image(path)


def places(affine: np.ndarray, chosen: np.ndarray, every: int = 7) -> np.ndarray:
    """Every so many voxels of those chosen, (n, 3) RAS mm."""
    voxels = np.argwhere(chosen)[::every]
    return voxels @ affine[:3, :3].T + affine[:3, 3]


def mapped(world: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ world[:3, :3].T + world[:3, 3]


def apart(one: np.ndarray, other: np.ndarray, points: np.ndarray) -> float:
    """The mean distance of where two maps lead, mm."""
    return float(np.linalg.norm(mapped(one, points) - mapped(other, points), axis=1).mean())


def misplacing(
    generator: np.random.Generator, centre: np.ndarray, turns: tuple[float, float] = (0, 30)
) -> np.ndarray:
    """Turned about a random axis, shifted by up to 30 mm, each axis scaled by up to 15 %."""
    axis = generator.normal(size=3)
    x, y, z = axis / np.linalg.norm(axis)
    angle = np.radians(generator.uniform(*turns))
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    shift = generator.normal(size=3)
    shift *= generator.uniform(0, 30) / np.linalg.norm(shift)
    world = np.eye(4)
    world[:3, :3] = turn @ np.diag(1 + generator.uniform(-0.15, 0.15, 3))
    world[:3, 3] = centre + shift - world[:3, :3] @ centre
    return world


def heads(data: Path, moving: str, fixed: str, folder: str = "brain2mm") -> Case:
    """Two people as they lie."""
    paths = [data / "volumes" / folder / f"{person}_t1.nii.gz" for person in (moving, fixed)]
    images = [image(path) for path in paths]
    chosen = images[1].data[0, 0].numpy() > 0
    points = places(images[1].affine, chosen)
    return Case(f"{moving} -> {fixed}", *images, points, np.eye(4))


def moved(case: Case, world: np.ndarray) -> Case:
    """The moving image where the map takes it: the array as it is, another header."""

    def there(image: Image | None) -> Image | None:
        return None if image is None else replace(image, affine=world @ image.affine)

    masks = there(case.moving_mask)
    return replace(case, moving=there(case.moving), misplacing=world, moving_mask=masks)


def cut(case: Case, generator: np.random.Generator, blank: bool) -> Case:
    """40 % of the moving array off, along an axis; or set to 0, at one end, with a mask."""
    data, axis = case.moving.data, int(generator.integers(3))
    n = data.shape[2 + axis]
    lost = round(CUT * n)
    if blank:
        first = int(generator.integers(2)) * (n - lost)
        data, chosen = data.clone(), torch.ones_like(data)
        for array in (data, chosen):
            array.narrow(2 + axis, first, lost).zero_()
        mask = replace(case.moving, data=chosen)
        return replace(case, moving=replace(case.moving, data=data), moving_mask=mask)
    first = int(generator.integers(lost + 1))
    affine = case.moving.affine.copy()
    affine[:3, 3] += affine[:3, axis] * first
    part = data.narrow(2 + axis, first, n - lost).contiguous()
    return replace(case, moving=replace(case.moving, data=part, affine=affine))


def drawn(data: Path, part: str, count: int) -> Iterator[Case]:
    """The cases of a part of the study, of pairs by turns."""
    for number in range(count):
        case = heads(data, *PAIRS[number % len(PAIRS)])
        generator = np.random.default_rng(1000 + number)
        centre = case.points.mean(0)
        if "turned" in part:
            case = moved(case, misplacing(generator, centre, (35, 180)))
        else:
            world = misplacing(generator, centre)
            if "cropped" in part or "blanked" in part:
                case = cut(case, generator, "blanked" in part)
            case = case if "in place" in part else moved(case, world)
        yield replace(case, name=f"{number}: {case.name}")
