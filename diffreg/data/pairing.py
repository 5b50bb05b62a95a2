"""Pairs of images: as they are listed, or every ordered pair of some images, by their number alone.

pair k of n images: moving k // (n - 1), fixed k % (n - 1), one further from the moving one on

A thousand images make 999,000 pairs, which nobody lists: a pair is made when it is asked for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, overload


@dataclass(frozen=True)
class Pair:
    """Two images that belong together, and what an expert drew on them.

    Args:
        moving: image to be warped, as `diffreg.read_image` takes it.
        fixed: the same, whose grid is kept.
        moving_label, fixed_label: label maps on the grids of their images.
        fixed_mask, moving_mask: voxels of the fixed and of the moving image that count.
        moving_points, fixed_points: CSV files of corresponding points (`diffreg.data.points`).
        true_displacement: a displacement file on the fixed grid, where the truth is known.
        group: what splits and intervals keep together, such as a patient.
        moving_slice, fixed_slice: slices of volumes.
        moving_time, fixed_time: time points of series.
        row: where the pair is from, for messages, such as "pairs.csv, line 3".
    """

    moving: Path
    fixed: Path
    moving_label: Path | None = None
    fixed_label: Path | None = None
    fixed_mask: Path | None = None
    moving_points: Path | None = None
    fixed_points: Path | None = None
    true_displacement: Path | None = None
    moving_mask: Path | None = None
    group: str = ""
    moving_slice: int | None = None
    fixed_slice: int | None = None
    moving_time: int | None = None
    fixed_time: int | None = None
    row: str = ""

    @property
    def name(self) -> str:
        """What reports call it: "a.nii.gz to b.nii.gz, slice 3"."""
        moving = said_part(self.moving_slice, self.moving_time)
        fixed = said_part(self.fixed_slice, self.fixed_time)
        if moving == fixed:
            return f"{self.moving.name} to {self.fixed.name}{moving and ','}{moving}"
        return f"{self.moving.name}{moving} to {self.fixed.name}{fixed}"


def said_part(slice_index: int | None, time: int | None) -> str:
    """What follows an image's name where it is a part of its file.

    Example:
        >>> from diffreg.data.pairing import said_part
        >>> said_part(3, None)
        ' slice 3'
    """
    named = (("slice", slice_index), ("time", time))
    return "".join(f" {word} {number}" for word, number in named if number is not None)


class Member(NamedTuple):
    """An image of a group, and what it brings to each of its pairs."""

    image: Path
    label: Path | None = None
    mask: Path | None = None
    points: Path | None = None
    time: int | None = None
    row: str = ""


@dataclass(frozen=True)
class Listed:
    """One pair; of volumes one for each of some slices."""

    pair: Pair
    slices: tuple[int, ...] = ()

    @property
    def group(self) -> str:
        return self.pair.group

    def __len__(self) -> int:
        return len(self.slices) or 1

    def __getitem__(self, number: int) -> Pair:
        return _slice_of(self.pair, self.slices, number)

    def cover(self) -> Iterator[Pair]:
        """All of them."""
        return map(self.__getitem__, range(len(self)))

    @property
    def names(self) -> list[str]:
        return [pair.name for pair in self.cover()]


@dataclass(frozen=True)
class Crossed:
    """Every ordered pair of some images, at one slice of all where `index` says so.

    Of volumes one for each of `slices`.
    """

    members: tuple[Member, ...]
    group: str = ""
    index: int | None = None
    slices: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.members) * (len(self.members) - 1) * (len(self.slices) or 1)

    def __getitem__(self, number: int) -> Pair:
        number, at = divmod(number, len(self.slices) or 1)
        moving, fixed = divmod(number, len(self.members) - 1)
        fixed += fixed >= moving
        pair = self._pair(self.members[moving], self.members[fixed])
        return _slice_of(pair, self.slices, at)

    def cover(self) -> Iterator[Pair]:
        """Pairs in which each image is the moving and the fixed one once, with labels and points.

        Images with labels and images with points are neighbours, so that what they bring is seen.
        """
        order = sorted(self.members, key=lambda one: (one.label is None, one.points is None))
        for moving, fixed in zip(order, [*order[1:], order[0]], strict=True):
            pair = self._pair(moving, fixed)
            yield from (_slice_of(pair, self.slices, at) for at in range(len(self.slices) or 1))

    @property
    def names(self) -> list[str]:
        """A title, and what the images are called: the pairs follow from their order."""
        of = f" of {self.group!r}" if self.group else ""
        at = "" if self.index is None else f", slice {self.index}"
        each = f", slices {', '.join(map(str, self.slices))}" if self.slices else ""
        title = f"every ordered pair of {len(self.members)} images{of}{at}{each}:"
        return [title, *(f"{one.image.name}{said_part(None, one.time)}" for one in self.members)]

    def among(self, chosen: Callable[[Path], bool]) -> Crossed:
        """Every ordered pair of those of some files."""
        return replace(self, members=tuple(one for one in self.members if chosen(one.image)))

    def _pair(self, a: Member, b: Member) -> Pair:
        labels, points = a.label and b.label, a.points and b.points
        return Pair(
            moving=a.image,
            fixed=b.image,
            moving_label=a.label if labels else None,
            fixed_label=b.label if labels else None,
            fixed_mask=b.mask,
            moving_points=a.points if points else None,
            fixed_points=b.points if points else None,
            group=self.group,
            moving_slice=self.index,
            fixed_slice=self.index,
            moving_time=a.time,
            fixed_time=b.time,
            row=a.row if a.row == b.row else f"{a.row} with {b.row.rpartition(', ')[2]}",
        )


Block = Listed | Crossed


class Pairs(Sequence[Pair]):
    """Pairs in a row, block after block; each is made when it is asked for.

    Args:
        blocks: pairs that are listed, and groups of images of which every ordered pair is meant.

    Example:
        >>> from pathlib import Path
        >>> from diffreg.data.pairing import Crossed, Member, Pairs
        >>> pairs = Pairs([Crossed(tuple(Member(Path(f"{k}.png")) for k in range(1000)))])
        >>> len(pairs), pairs[998].name, pairs[999].name
        (999000, '0.png to 999.png', '1.png to 0.png')
    """

    def __init__(self, blocks: Iterable[Block]) -> None:
        self.blocks = tuple(block for block in blocks if len(block))
        self._ends = list(accumulate(map(len, self.blocks)))

    @classmethod
    def of(cls, pairs: Iterable[Pair]) -> Pairs:
        """Pairs as they are listed; such a row stays what it is."""
        return pairs if isinstance(pairs, Pairs) else cls(map(Listed, pairs))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...
    def __getitem__(self, index: Any) -> Any:
        numbers = range(len(self))[index]
        if isinstance(numbers, range):
            return [self[number] for number in numbers]
        block = bisect_right(self._ends, numbers)
        return self.blocks[block][numbers - (self._ends[block] - len(self.blocks[block]))]

    def __iter__(self) -> Iterator[Pair]:
        for block in self.blocks:
            yield from map(block.__getitem__, range(len(block)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pairs) and self.blocks == other.blocks

    __hash__ = None  # type: ignore[assignment]

    @property
    def groups(self) -> list[str]:
        """The names of the groups, in the order of their first pair."""
        return list(dict.fromkeys(block.group for block in self.blocks))

    @property
    def images(self) -> list[Path]:
        """The files that are paired, each once."""
        both = ((pair.moving, pair.fixed) for pair in self.cover())
        return list(dict.fromkeys(path for sides in both for path in sides))

    @property
    def names(self) -> list[str]:
        """What they are called: a name each where they are listed, else one for each image."""
        return [name for block in self.blocks for name in block.names]

    def of_groups(self, chosen: Callable[[str], bool]) -> Pairs:
        """Those of some groups."""
        return Pairs(block for block in self.blocks if chosen(block.group))

    def of_images(self, chosen: Callable[[Path], bool]) -> Pairs:
        """Those of which both images are of some files; of crossed images alone."""
        blocks = (block for block in self.blocks if isinstance(block, Crossed))
        return Pairs(block.among(chosen) for block in blocks)

    def cover(self) -> Iterator[Pair]:
        """Enough of them to see each image as the moving and as the fixed one."""
        for block in self.blocks:
            yield from block.cover()


def _slice_of(pair: Pair, slices: Sequence[int], number: int) -> Pair:
    """One slice of a pair of volumes; without slices the pair."""
    if not slices:
        return pair
    return replace(pair, moving_slice=slices[number], fixed_slice=slices[number])
