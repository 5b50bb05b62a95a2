"""Pairs on the grids of their fixed images, their parts made once and found again.

An image without a mask is brought onto each other grid once, and normalised once for each region
that it is compared in: of n images on one grid n are kept, however many pairs they make.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffreg.data.geometry import Image, display_orientation
from diffreg.data.grid import Grid
from diffreg.data.images import read_part
from diffreg.data.known import Known, placed, read_known
from diffreg.data.labels import doubted
from diffreg.data.normalization import Normalization
from diffreg.data.pairing import Pair
from diffreg.data.prepare import PairImages
from diffreg.data.resampling import resample_to
from diffreg.data.samples import Sample
from diffreg.data.store import MISSING, Aside, Held, Kept, stamp

# Bytes of images as they are in their files, the last ones, held meanwhile: where pairs are held in
# memory, and where they are kept in a folder because they may not fit.
_READ = {Held: 2**30, Kept: 2**28}
_KINDS = ("nifti", "png", "npz")

Part = tuple[int | None, int | None]
Start = Callable[[PairImages], np.ndarray]


@dataclass(frozen=True)
class Place:
    """Where an image lies, and whether all its voxels hold a number."""

    grid: Grid
    kind: str
    whole: bool

    @classmethod
    def of(cls, image: Image) -> Place:
        return cls(image.grid, image.kind, image.valid is None)

    @cached_property
    def key(self) -> tuple[Any, ...]:
        """What is the same for all images on one grid."""
        return (*self.grid.size, self.grid.affine.tobytes(), self.grid.is_flat, self.kind)

    @cached_property
    def display(self) -> tuple[bool, bool, bool]:
        """How it is drawn upright."""
        return display_orientation(self.grid.affine, self.kind)

    def packed(self) -> Tensor:
        """As numbers, float64."""
        flags = self.grid.is_flat, _KINDS.index(self.kind), self.whole
        return torch.tensor(
            [*self.grid.affine.flatten(), *flags, *self.grid.size], dtype=torch.float64
        )

    @classmethod
    def unpacked(cls, numbers: Tensor, name: str) -> Place:
        """From what `packed` gave."""
        affine = numbers[:16].reshape(4, 4).numpy().copy()
        is_flat, kind, whole, *size = map(int, numbers[16:].tolist())
        return cls(Grid(tuple(size), affine, name, bool(is_flat)), _KINDS[kind], bool(whole))


class PreparedPairs:
    """What `diffreg.registration.register` would see of each pair.

    Args:
        normalization: of each image, or slice, by itself.
        store: where what was made is kept.
        terms: what else of the pairs is read (`diffreg.data.known`).
        start: finds the affine map that the moving image is placed by first, (4, 4); None: none.
        starts: where these maps are kept; None: where all else is.

    Raises:
        FileNotFoundError, ValueError: when a pair is asked for whose files are missing or do not
            fit together.
    """

    def __init__(
        self,
        normalization: Normalization,
        store: Held | Kept,
        terms: Collection[str] = (),
        start: Start | None = None,
        starts: Aside | None = None,
    ) -> None:
        self.normalization, self.store, self.terms = normalization, store, terms
        self.start, self._starts = start, store if starts is None else starts
        self._settings = repr(normalization), repr(start)
        self._read_last = Held(_READ[type(self.store)])
        self._stamps: dict[Path, tuple[Any, ...]] = {}
        self._places: dict[Any, Place] = {}
        self._doubted: set[Any] = set()  # label maps that were looked at

    def forget_files(self) -> None:
        """No longer hold images as they are in their files."""
        self._read_last = Held(_READ[type(self.store)])

    def place(self, path: Path, part: Part) -> Place:
        """Where an image lies, without its numbers where that is known."""
        key = self._key(path, part)
        if key not in self._places:
            (numbers,) = self._found(
                [("place", key)], lambda: [Place.of(self._read(path, part)).packed()]
            )
            self._places[key] = Place.unpacked(numbers, str(path))
        return self._places[key]

    def sample(self, pair: Pair) -> Sample:
        """All of a pair on the fixed grid."""
        of_moving, of_fixed = sides_of(pair)
        images = self._key(pair.moving, of_moving), self._key(pair.fixed, of_fixed)
        region, place = self._region(pair), self.place(pair.fixed, of_fixed)
        keys: list[Any] = [("moving", images[0]), ("fixed", images[1]), ("mask",)]
        keys = [(*key, region, self._settings) for key in keys]
        make = partial(self._prepared, pair, region)
        moving, fixed, mask = self._found(keys, make, [*images, None])
        labels = self._label(pair, region, 0), self._label(pair, region, 1)
        return Sample(moving, fixed, mask, *labels, place.display, self._known(pair, region))

    def _region(self, pair: Pair) -> tuple[Any, ...]:
        """What decides where a pair is compared: two grids, or all of its files."""
        of_moving, of_fixed = sides_of(pair)
        places = self.place(pair.moving, of_moving), self.place(pair.fixed, of_fixed)
        whole = all(place.whole for place in places)
        if whole and not (pair.moving_mask or pair.fixed_mask or self.start):
            return (places[0].key, places[1].key)
        sides = (pair.moving, pair.moving_mask, of_moving), (pair.fixed, pair.fixed_mask, of_fixed)
        return tuple(path and self._key(path, part) for *paths, part in sides for path in paths)

    def _prepared(self, pair: Pair, region: Any) -> list[Tensor | None]:
        try:
            prepared = self._images(pair).prepared(self.normalization, self._matrix(pair, region))
        except ValueError as error:
            raise ValueError(f"{pair.name}: {error}") from None
        return [prepared.moving_values, prepared.fixed_values, prepared.weights]

    def _matrix(self, pair: Pair, region: Any) -> np.ndarray | None:
        """The affine start, None where none is asked for."""
        start = self.start
        if start is None:
            return None

        def found_anew() -> list[Tensor]:
            return [torch.from_numpy(start(self._images(pair).clipped(self.normalization)))]

        key = "affine", region, self._settings
        (found,) = self._found([key], found_anew, store=self._starts)
        matrix: np.ndarray = found.numpy().copy()
        return matrix

    def _label(self, pair: Pair, region: Any, side: int) -> Tensor | None:
        """The label map of one side on the fixed grid."""
        path = (pair.moving_label, pair.fixed_label)[side]
        if path is None:
            return None
        of_label, of_fixed = sides_of(pair)[side], sides_of(pair)[1]
        started = (region, self._settings) if self.start and side == 0 else ()
        key = "label", self._key(path, of_label), self.place(pair.fixed, of_fixed).key, started

        def made() -> list[Tensor]:
            labels, fixed = self._read(path, of_label, True), self._read(pair.fixed, of_fixed)
            if (of_file := self._key(path, of_label)) not in self._doubted:
                self._doubted.add(of_file)
                doubted(labels)
            matrix = self._matrix(pair, region) if started else None
            labels = labels if matrix is None else labels.placed(matrix)
            return [resample_to(labels, fixed, interpolation="nearest")]

        found: Tensor = self._found([key], made, [key[:2]])[0]
        return found

    def _known(self, pair: Pair, region: Any) -> Known:
        """The points and the displacement of a pair, where they are asked for."""
        wanted: list[tuple[str, Path | None]] = []
        if pair.moving_points and pair.fixed_points:
            wanted += [("landmarks", pair.moving_points), ("landmarks", pair.fixed_points)]
        wanted.append(("displacement", pair.true_displacement))
        files = [(term, path) for term, path in wanted if path and term in self.terms]
        if not files:
            return Known()
        stamps = [self._key(path, (None, None)) for _, path in files]
        keys = [(name, *stamps, region, self._settings) for name in Known._fields[2:]]

        def made() -> Sequence[Tensor | None]:
            moving, fixed, *_ = self._images(pair)
            matrix = self._matrix(pair, region)
            placed_moving = moving if matrix is None else moving.placed(matrix)
            known = read_known(pair, placed_moving, fixed, self.terms)
            if matrix is not None and known.displacement is not None:
                there = placed(known.displacement, fixed.affine, matrix)
                known = known._replace(displacement=there)
            return known[2:]

        return Known._make([None, None, *self._found(keys, made)])

    def _images(self, pair: Pair) -> PairImages:
        """A pair as read."""
        of_moving, of_fixed = sides_of(pair)
        moving, fixed = self._read(pair.moving, of_moving), self._read(pair.fixed, of_fixed)
        sides = (pair.fixed_mask, of_fixed), (pair.moving_mask, of_moving)
        masks = [None if path is None else self._read(path, part, True) for path, part in sides]
        return PairImages(moving, fixed, *masks)

    def _read(self, path: Path, part: Part, label: bool = False) -> Image:
        key = self._key(path, part), label
        found: Image = self._read_last.get(key)
        if found is MISSING:
            found = self._read_last.put(key, read_part(path, *part, label))
        return found

    def _key(self, path: Path, part: Part) -> tuple[Any, ...]:
        if path not in self._stamps:
            self._stamps[path] = stamp(path)
        return (*self._stamps[path], *part)

    def _found(
        self,
        keys: Sequence[Any],
        make: Callable[[], Sequence[Tensor | None]],
        images: Sequence[Any] = (None, None, None),
        store: Held | Kept | Aside | None = None,
    ) -> list[Any]:
        """What is kept under some keys; made, and kept, where one of them is missing."""
        store = self.store if store is None else store
        found = [store.get(key) for key in keys]
        if all(value is not MISSING for value in found):
            return found
        made = zip(keys, make(), images, strict=False)
        return [store.put(key, value, image) for key, value, image in made]


def sides_of(pair: Pair) -> tuple[Part, Part]:
    """Slice and time point of the moving and of the fixed image."""
    return (pair.moving_slice, pair.moving_time), (pair.fixed_slice, pair.fixed_time)
