"""Pairs of images to train on: found in folders or a manifest, read once, drawn without end.

Draw number k of a run is the pair at place k mod P of a shuffled order of all P pairs, another
order each epoch k // P. What is drawn is a pure function of (seed, k): nothing else has to be kept
to go on where a run stopped. Called by the trainer.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffreg.data import _nifti
from diffreg.data.geometry import Image, resample_to
from diffreg.data.images import count_slices, kind_of, read_image
from diffreg.data.normalization import Normalization
from diffreg.data.synthetic import Augmentation

COLUMNS = ("moving", "fixed")


class PairFiles(NamedTuple):
    """Two files and the slice of both that is meant; None where they are not volumes."""

    moving: Path
    fixed: Path
    slice_index: int | None = None

    def __str__(self) -> str:
        where = "" if self.slice_index is None else f", slice {self.slice_index}"
        return f"{self.moving.name} to {self.fixed.name}{where}"


class Batch(NamedTuple):
    """Pairs drawn together: images (N, 1, *S), float32 in [0, 1], and what each is called."""

    moving: Tensor
    fixed: Tensor
    names: tuple[str, ...]


class PairDataset:
    """Pairs of images, read and normalised once, drawn shuffled and augmented.

    Args:
        pairs: which pairs.
        normalization: of each image, or slice, by itself.
        augmentation: what is done to a pair each time it is drawn; None: nothing.
        seed: of the order and of the augmentation.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: there are no pairs, or images that do not fit together.

    Example: `PairDataset(find_pairs(["images"])).batch(range(8)).moving`
    """

    def __init__(
        self,
        pairs: Sequence[PairFiles],
        normalization: Normalization | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        if not pairs:
            raise ValueError("there are no pairs to train on")
        self.pairs = list(pairs)
        self.normalization = normalization or Normalization()
        self.augmentation = augmentation or Augmentation()
        self.seed = seed
        read = cache(read_image)
        self.images = [self._read(pair, read) for pair in self.pairs]
        self.spacing = _common_grid(self.pairs, read)

    def __len__(self) -> int:
        return len(self.pairs)

    def position(self, number: int) -> tuple[int, int]:
        """The epoch of a draw, and which pair it is."""
        epoch, place = divmod(number, len(self))
        return epoch, int(self._order(epoch)[place])

    def draw(self, number: int) -> tuple[Tensor, Tensor]:
        """The moving and the fixed image (1, 1, *S) of a draw, augmented."""
        epoch, index = self.position(number)
        random = np.random.default_rng([self.seed, epoch, index])
        return self.augmentation(*self.images[index], random)

    def batch(self, numbers: Iterable[int]) -> Batch:
        """Several draws together."""
        numbers = list(numbers)
        moving, fixed = zip(*(self.draw(number) for number in numbers), strict=True)
        names = tuple(str(self.pairs[self.position(number)[1]]) for number in numbers)
        return Batch(torch.cat(moving), torch.cat(fixed), names)

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self))

    def _read(self, pair: PairFiles, read: Callable[..., Image]) -> tuple[Tensor, Tensor]:
        """Both images on the fixed grid, normalised as `diffreg.registration.register` does."""
        moving, fixed = read(pair.moving, pair.slice_index), read(pair.fixed, pair.slice_index)
        if moving.kind != fixed.kind:
            raise ValueError(f"{pair}: one is a PNG file, which has no physical coordinates")
        for image in (moving, fixed):
            if bool((image.data == image.data.flatten()[0]).all()):
                raise ValueError(f"{pair}: {image.name} is constant, there is nothing to align")
        limits = self.normalization.limits(moving.data)
        on_fixed = resample_to(moving, fixed, padding="border")
        return self.normalization.scale(on_fixed, limits), self.normalization(fixed.data)


def find_pairs(images: Sequence[str | Path], slices: Sequence[int] = ()) -> list[PairFiles]:
    """Every ordered pair of different images, or the pairs of a manifest.

    Args:
        images: folders and NIfTI or PNG files; or one CSV manifest with the columns moving and
            fixed, whose paths are relative to its folder.
        slices: of volumes; none: all of them.

    Returns:
        The pairs; of volumes, one for each slice.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: there is nothing to pair, or two volumes differ in their slices.

    Example: `find_pairs(["colin27_t1.nii.gz", "mni152_t1.nii.gz"], slices=[0, 1])`
    """
    paths = [Path(image) for image in images]
    manifests = [path for path in paths if path.suffix.lower() == ".csv"]
    if manifests and len(paths) > 1:
        raise ValueError(f"images must be one manifest or images, got {manifests[0]} and others")
    couples = read_manifest(paths[0]) if manifests else list(permutations(_files(paths), 2))
    if not couples:
        raise ValueError(
            "images must be at least two images to make a pair, got "
            f"{', '.join(map(str, paths)) or 'none'}"
        )
    return [pair for couple in couples for pair in _by_slice(*couple, slices)]


def read_manifest(path: str | Path) -> list[tuple[Path, Path]]:
    """The pairs of files that a CSV manifest lists.

    Args:
        path: a CSV file whose first line is moving,fixed; its paths are relative to its folder.

    Returns:
        (moving, fixed) of each line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: wrong columns, an empty field, a pair that is there twice, or no pair.

    Example: `read_manifest("pairs.csv")`
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [line for line in csv.reader(file) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV file: {error}") from None
    head = [column.strip() for column in lines[0]] if lines else []
    if sorted(head) != sorted(COLUMNS):
        raise ValueError(
            f"{path}: the columns must be {', '.join(COLUMNS)}, got {', '.join(head) or 'none'}"
        )
    couples: list[tuple[Path, Path]] = []
    for number, line in enumerate(lines[1:], start=2):
        values = dict(zip(head, (field.strip() for field in line), strict=False))
        if len(line) != len(head) or not all(values.values()):
            raise ValueError(f"{path}, line {number}: moving and fixed must each be a file")
        couple = (path.parent / values["moving"], path.parent / values["fixed"])
        if couple in couples:
            raise ValueError(f"{path}, line {number}: this pair is there twice")
        couples.append(couple)
    if not couples:
        raise ValueError(f"{path} lists no pair")
    return couples


def _files(paths: Sequence[Path]) -> list[Path]:
    """The images among the paths, folders opened."""
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        endings = (*_nifti.ENDINGS, ".png")
        inside = [p for p in sorted(path.glob("*")) if p.name.lower().endswith(endings)]
        if path.is_dir() and not inside:
            raise ValueError(f"the folder {path} holds no NIfTI or PNG file")
        files += inside if path.is_dir() else [path]
    for file in files:
        kind_of(file)
        if files.count(file) > 1:
            raise ValueError(f"images must be different files, got {file} twice")
    return files


def _by_slice(moving: Path, fixed: Path, slices: Sequence[int]) -> list[PairFiles]:
    """One pair of 2-D images, or one for each slice of two volumes."""
    counts = [count_slices(path) for path in (moving, fixed)]
    if counts[0] != counts[1]:
        raise ValueError(
            f"{moving} has {counts[0]} slices and {fixed} has {counts[1]}: slices are paired by "
            "number"
        )
    if counts[0] == 1:
        if slices:
            raise ValueError(f"slices are for volumes; {moving} holds one image")
        return [PairFiles(moving, fixed)]
    for index in slices:
        if not 0 <= index < counts[0]:
            raise ValueError(f"slices must be within 0..{counts[0] - 1} of {moving}, got {index}")
    return [PairFiles(moving, fixed, index) for index in slices or range(counts[0])]


def _common_grid(pairs: Sequence[PairFiles], read: Callable[..., Image]) -> tuple[float, ...]:
    """The proportions of the fixed images' voxels, which must be one for all, as their size."""
    grids: dict[tuple[tuple[int, ...], tuple[float, ...]], Path] = {}
    for pair in pairs:
        fixed = read(pair.fixed, pair.slice_index)
        finest = min(fixed.spacing)
        proportions = tuple(round(length / finest, 3) for length in fixed.spacing)
        grids.setdefault((fixed.shape, proportions), pair.fixed)
    if len(grids) > 1:
        (one, first), (other, second) = list(grids.items())[:2]
        raise ValueError(
            f"the fixed images must have one size and voxels of one shape: {first} has {one[0]} "
            f"and {one[1]}, {second} has {other[0]} and {other[1]}"
        )
    return next(iter(grids))[1]
