"""Pairs of images to train on: found in folders or a manifest, read once, drawn without end.

Draw number k of a run is the pair at place k mod P of a shuffled order of all P pairs, another
order each epoch k // P. What is drawn is a pure function of (seed, k): nothing else has to be kept
to go on where a run stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffreg.data.folders import folder_images, left_out
from diffreg.data.geometry import Image, display_orientation
from diffreg.data.images import count_slices, read_part
from diffreg.data.known import (
    Known,
    changed,
    check_terms,
    label_values,
    one_hot,
    read_known,
    together,
)
from diffreg.data.manifest import MANIFESTS, Pair, read_manifest
from diffreg.data.normalization import Normalization
from diffreg.data.prepare import prepare
from diffreg.data.resampling import resample_to
from diffreg.data.slices import by_slice
from diffreg.data.synthetic import Augmentation, Change


class Sample(NamedTuple):
    """A pair on the grid of its fixed image, (1, 1, *S) each; None where the manifest has none.

    The images are float32 in [0, 1], the mask is 0 or 1, None where all voxels are compared, the
    labels are whole numbers.
    """

    moving: Tensor
    fixed: Tensor
    mask: Tensor | None
    moving_label: Tensor | None
    fixed_label: Tensor | None
    display: tuple[bool, bool, bool]
    known: Known = Known()


class Batch(NamedTuple):
    """Pairs drawn together: images (N, 1, *S) in [0, 1], what counts, and what each is called."""

    moving: Tensor
    fixed: Tensor
    mask: Tensor | None
    names: tuple[str, ...]
    known: Known = Known()

    def part(self, which: slice) -> Batch:
        """Some of the pairs."""
        mask = None if self.mask is None else self.mask[which]
        images = self.moving[which], self.fixed[which]
        return Batch(*images, mask, self.names[which], self.known.part(which))

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device; from pinned memory the host does not wait."""
        mask = None if self.mask is None else self.mask.to(device, non_blocking=True)
        moving = self.moving.to(device, non_blocking=True)
        fixed = self.fixed.to(device, non_blocking=True)
        return Batch(moving, fixed, mask, self.names, self.known.to(device))


class PairDataset:
    """Pairs of images, read and normalised once, drawn shuffled and augmented.

    Args:
        pairs: which pairs.
        normalization: of each image, or slice, by itself.
        augmentation: what is done to a pair each time it is drawn; None: nothing.
        seed: of the order and of the augmentation.
        batches: whether pairs are to be put together, which needs images of one size.
        terms: what else is known of pairs and drawn with them: "labels", "landmarks",
            "displacement" (`diffreg.data.known`).

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: there are no pairs, or images that do not fit together.

    Example: `PairDataset(find_pairs(["images"])).batch(range(8)).moving`
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        normalization: Normalization | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        batches: bool = True,
        terms: Collection[str] = (),
    ) -> None:
        if not pairs:
            raise ValueError("there are no pairs to train on")
        self.pairs = list(pairs)
        self.normalization = normalization or Normalization()
        self.augmentation = augmentation or Augmentation()
        self.seed = seed
        self.terms = tuple(terms)
        check_terms(self.pairs, self.terms)
        read = cache(read_part)
        # An image is in many pairs: the same values are held once.
        shared: dict[Any, Tensor] = {}
        self.samples = [self._read(pair, read, shared) for pair in self.pairs]
        self._labels: list[float] = []
        if "labels" in self.terms:
            maps = [label for s in self.samples for label in (s.moving_label, s.fixed_label)]
            self._labels = label_values(maps)
        self.spacing = self._common_grid(read, batches)

    def __len__(self) -> int:
        return len(self.pairs)

    def position(self, number: int) -> tuple[int, int]:
        """The epoch of a draw, and which pair it is."""
        epoch, place = divmod(number, len(self))
        return epoch, int(self._order(epoch)[place])

    def epoch(self, number: int) -> tuple[int, int]:
        """The epoch of a draw, and its place in it."""
        return divmod(number, len(self))

    def name(self, number: int) -> str:
        """What the pair of a draw is called."""
        return self.pairs[self.position(number)[1]].name

    @property
    def names(self) -> list[str]:
        """What the pairs are called, which a checkpoint keeps."""
        return [pair.name for pair in self.pairs]

    def title(self, index: int) -> str:
        """What a pair is called."""
        return self.pairs[index].name

    def whole(self, index: int) -> tuple[Sample, Known]:
        """A pair as it is, to validate on, and what `terms` ask for of it."""
        return self.samples[index], self.known(index)

    def known(self, index: int) -> Known:
        """What `terms` ask for of a pair as it is, its labels as channels."""
        sample = self.samples[index]
        if not self._labels:
            return sample.known
        labels = sample.moving_label, sample.fixed_label
        channels = [None if label is None else one_hot(label, self._labels) for label in labels]
        return Known._make([*channels, *sample.known[2:]])

    def draw(self, number: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """The moving and the fixed image and the mask (1, 1, *S) of a draw, augmented."""
        batch = self.batch([number])
        return batch.moving, batch.fixed, batch.mask

    def batch(self, numbers: Iterable[int], device: torch.device | str = "cpu") -> Batch:
        """Several draws together, augmented on the device that they are wanted on."""
        numbers = list(numbers)
        positions = [self.position(number) for number in numbers]
        samples = [self.samples[index] for _, index in positions]
        changes = self._changes(samples, positions, device)
        moving, fixed, masks = [], [], []
        for sample, change in zip(samples, changes, strict=True):
            pair = change(sample.moving.to(device), sample.fixed.to(device))
            mask = sample.mask
            moving.append(pair[0])
            fixed.append(pair[1])
            masks.append(None if mask is None else change.mask(mask.to(device)))
        weights = None
        if any(mask is not None for mask in masks):
            both = zip(masks, fixed, strict=True)
            weights = torch.cat([torch.ones_like(f) if m is None else m for m, f in both])
        names = tuple(map(self.name, numbers))
        batch = Batch(torch.cat(moving), torch.cat(fixed), weights, names)
        if not self.terms:
            return batch
        pairs = zip(positions, changes, strict=True)
        known = [changed(self.known(at).to(device), change) for (_, at), change in pairs]
        return batch._replace(known=together(known, batch.fixed.shape[2:]))

    def _changes(
        self,
        samples: Sequence[Sample],
        positions: Sequence[tuple[int, int]],
        device: torch.device | str,
    ) -> list[Change]:
        """What the augmentation does to each; images of one size together."""
        randoms = [np.random.default_rng([self.seed, *position]) for position in positions]
        shapes = [tuple(sample.fixed.shape[2:]) for sample in samples]
        if len(set(shapes)) <= 1:
            return self.augmentation.draw_all(shapes[0], randoms, device) if shapes else []
        pairs = zip(shapes, randoms, strict=True)
        return [self.augmentation.draw_all(shape, [r], device)[0] for shape, r in pairs]

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self))

    def _read(self, pair: Pair, read: Callable[..., Image], shared: dict[Any, Tensor]) -> Sample:
        """All of a pair on the fixed grid, as `diffreg.registration.register` takes it."""
        of_moving, of_fixed = _parts(pair)
        moving, fixed = read(pair.moving, *of_moving), read(pair.fixed, *of_fixed)

        def label(path: Path | None, part: tuple[int | None, int | None]) -> Image | None:
            return None if path is None else read(path, *part, True)

        masks = label(pair.fixed_mask, of_fixed), label(pair.moving_mask, of_moving)
        try:
            prepared = prepare(moving, fixed, masks[0], self.normalization, masks[1])
        except ValueError as error:
            raise ValueError(f"{pair.name}: {error}") from None

        def once(values: Tensor, *key: Any) -> Tensor:
            held = shared.setdefault(key, values)
            return held if torch.equal(held, values) else values

        def aligned(labels: Image | None) -> Tensor | None:
            return None if labels is None else resample_to(labels, fixed, interpolation="nearest")

        return Sample(
            once(prepared.moving_values, pair.moving, *of_moving),
            once(prepared.fixed_values, pair.fixed, *of_fixed),
            prepared.weights,
            aligned(label(pair.moving_label, of_moving)),
            aligned(label(pair.fixed_label, of_fixed)),
            display_orientation(fixed.affine, fixed.kind),
            read_known(pair, moving, fixed, self.terms),
        )

    def _common_grid(self, read: Callable[..., Image], batches: bool) -> tuple[float, ...]:
        """The proportions of the fixed images' voxels: one for all; so is what batches hold."""
        grids: dict[tuple[tuple[int, ...], tuple[float, ...]], Path] = {}
        for pair in self.pairs:
            fixed = read(pair.fixed, *_parts(pair)[1])
            finest = min(fixed.spacing)
            proportions = tuple(round(length / finest, 3) for length in fixed.spacing)
            try:
                shape = self.augmentation.shape(fixed.shape) if batches else ()
            except ValueError as error:
                raise ValueError(f"{pair.fixed}: {error}") from None
            grids.setdefault((shape, proportions), pair.fixed)
        if len(grids) > 1:
            (one, first), (other, second) = list(grids.items())[:2]
            raise ValueError(
                f"the fixed images must have one size (or a crop) and voxels of one shape: {first} "
                f"has {one[0]} and {one[1]}, {second} has {other[0]} and {other[1]}"
            )
        return next(iter(grids))[1]


def _parts(pair: Pair) -> list[tuple[int | None, int | None]]:
    """Slice and time point of the moving and of the fixed image."""
    return [(pair.moving_slice, pair.moving_time), (pair.fixed_slice, pair.fixed_time)]


def find_pairs(
    images: Sequence[str | Path], slices: Sequence[int] = (), dimensions: int = 2
) -> list[Pair]:
    """Every ordered pair of different images, or the pairs of a manifest.

    Args:
        images: folders and image files; or one manifest (`diffreg.data.manifest`).
        slices: of volumes; none: all of them.
        dimensions: 3 takes volumes whole.

    Returns:
        The pairs; of volumes, one for each slice, unless they are taken whole.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: there is nothing to pair, two volumes differ in their slices, or what is to be a
            volume is none.

    Example: `find_pairs(["colin27_t1.nii.gz", "mni152_t1.nii.gz"], slices=[0, 1])`
    """
    paths = [Path(image) for image in images]
    manifests = [path for path in paths if path.suffix.lower() in MANIFESTS]
    if manifests and len(paths) > 1:
        raise ValueError(f"images must be one manifest or images, got {manifests[0]} and others")
    pairs: list[Pair]
    if manifests:
        pairs = list(read_manifest(manifests[0]))
    else:
        pairs = [Pair(moving, fixed) for moving, fixed in permutations(_files(paths), 2)]
    if not pairs:
        raise ValueError(
            "images must be at least two images to make a pair, got "
            f"{', '.join(map(str, paths)) or 'none'}"
        )
    if dimensions == 3:
        _check_whole(pairs, slices)
        return pairs
    if slices and all(count_slices(pair.moving) == 1 for pair in pairs):
        raise ValueError(f"slices are for volumes; {pairs[0].moving} holds one image")
    return [part for pair in pairs for part in by_slice(pair, slices)]


def _check_whole(pairs: Sequence[Pair], slices: Sequence[int]) -> None:
    """Raises unless the pairs are of volumes, of which no slice is asked for."""
    if slices:
        raise ValueError(
            f"slices must be left out where volumes are taken whole, got {list(slices)}"
        )
    counted = cache(count_slices)
    for pair in pairs:
        sides = ((pair.moving, pair.moving_slice), (pair.fixed, pair.fixed_slice))
        for path, index in sides:
            if index is not None:
                raise ValueError(
                    f"{pair.name}: a slice of {path} is asked for, where volumes are taken whole"
                )
            if counted(path) == 1:
                raise ValueError(f"{path} must be a volume, and holds one slice")


def split_by_group(
    pairs: Sequence[Pair], groups: Sequence[str] = (), share: float = 0.0, seed: int = 0
) -> tuple[list[Pair], list[Pair]]:
    """Keep whole groups, such as patients, out of the training; never single pairs of one.

    Args:
        pairs: all of them.
        groups: the names of those to keep out.
        share: or which part of all groups, rounded, at least one; drawn by the seed.
        seed: of the draw.

    Returns:
        The pairs to train on, and those to validate on.

    Raises:
        ValueError: a group that is not there, no groups, or none left on one side.

    Example:
        >>> from pathlib import Path
        >>> from diffreg.data.manifest import Pair
        >>> from diffreg.data.pairs import split_by_group
        >>> pairs = [Pair(Path("a"), Path("b"), group=name) for name in ("one", "two", "two")]
        >>> [len(part) for part in split_by_group(pairs, ["one"])]
        [2, 1]
    """
    names = list(dict.fromkeys(pair.group for pair in pairs))
    if not groups and share == 0:
        return list(pairs), []
    if names == [""]:
        raise ValueError("the pairs have no groups to split by: give the manifest a column group")
    for name in groups:
        if name not in names:
            raise ValueError(f"there is no group {name!r}; the groups are {', '.join(names)}")
    if not groups:
        count = max(1, math.floor(share * len(names) + 0.5))
        order = np.random.default_rng([seed]).permutation(len(names))
        groups = [names[index] for index in order[:count]]
    kept = [pair for pair in pairs if pair.group not in groups]
    if not kept:
        raise ValueError(f"validation takes all {len(names)} groups, which leaves none to train on")
    return kept, [pair for pair in pairs if pair.group in groups]


def _files(paths: Sequence[Path]) -> list[Path]:
    """The images among the paths, folders opened."""
    files: list[Path] = []
    for path in paths:
        inside = folder_images(path) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"the folder {path} holds no image{left_out(path)}")
        files += inside
    for file in files:
        if files.count(file) > 1:
            raise ValueError(f"images must be different files, got {file} twice")
    return files
