"""The pairs of a manifest, where it is asked for with volumes slice by slice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from diffreg.data.images import count_slices
from diffreg.data.manifest import Manifest
from diffreg.data.pairing import Block, Pair, Pairs


def by_slice(
    pair: Pair, slices: Sequence[int] = (), count: Callable[[Path], int] = count_slices
) -> list[Pair]:
    """A pair of volumes without a slice as one pair for each slice; any other pair as it is.

    Args:
        pair: opened for the number of its slices.
        slices: which of them; none: all.
        count: gives the number of an image's slices.

    Returns:
        At least one pair.

    Raises:
        FileNotFoundError, ValueError: a file that cannot be read, volumes with different numbers of
            slices, or no such slice.

    Example: `[part for pair in manifest for part in by_slice(pair)]`
    """
    counts = [count(image) for image in (pair.moving, pair.fixed)]
    given = pair.moving_slice is not None or pair.fixed_slice is not None
    if given or max(counts) == 1:
        return [pair]
    if counts[0] != counts[1]:
        raise ValueError(
            f"{pair.moving} has {counts[0]} slices and {pair.fixed} has {counts[1]}: slices are "
            "paired by number; a column moving_slice and fixed_slice, or slice, says which"
        )
    for index in slices:
        if not 0 <= index < counts[0]:
            raise ValueError(f"{pair.moving} has no slice {index}, only 0..{counts[0] - 1}")
    chosen = slices or range(counts[0])
    return [replace(pair, moving_slice=index, fixed_slice=index) for index in chosen]


def sliced(pairs: Pairs, slices: Sequence[int] = ()) -> Pairs:
    """Pairs of volumes slice by slice, as `by_slice` takes each of them.

    Args:
        pairs: opened for the number of their slices; of a group each image once or twice.
        slices: which of them; none: all.

    Raises:
        FileNotFoundError, ValueError: as `by_slice`.

    Example: `sliced(find_pairs(["volumes"], dimensions=3), [40, 41])`
    """

    count = cache(count_slices)  # images of many rows are opened once

    def parts(block: Block) -> Block:
        found: list[Pair] = []
        for pair in block.cover():
            found = by_slice(pair, slices, count)
            found = [] if found[0] is pair else found
        return replace(block, slices=tuple(part.moving_slice or 0 for part in found))

    return Pairs(map(parts, pairs.blocks))


def numbered(
    manifest: Manifest, mistakes: tuple[type[Exception], ...], slices: bool = True
) -> Iterator[tuple[int, Pair, Exception | None]]:
    """Every pair with its number from 1.

    Args:
        manifest: each of its images is opened once.
        slices: take volumes slice by slice.
        mistakes: errors that concern one row; it counts as one pair then, given with the error.

    Yields:
        (number, pair, None), or (number, row, error).

    Example: `for number, pair, error in numbered(manifest, (ValueError, OSError)): ...`
    """
    number, count = 0, cache(count_slices)
    for row in manifest:
        try:
            parts = by_slice(row, count=count) if slices else [row]
            for path in () if slices else (row.moving, row.fixed):
                count(path)  # says in words what cannot be opened
        except mistakes as error:
            number += 1
            yield number, row, error
            continue
        for pair in parts:
            number += 1
            yield number, pair, None


def count_pairs(manifest: Manifest, by_slices: bool = True) -> int:
    """How many pairs there are, as `numbered` counts them.

    Args:
        by_slices: take volumes slice by slice.
        manifest: each of its images is opened once; what cannot be opened counts as one slice.

    Example: `count_pairs(read_manifest("images"))`
    """

    if not by_slices:
        return len(manifest)

    @cache
    def slices(path: Path) -> int:
        try:
            return count_slices(path)
        except (OSError, ValueError):
            return 1

    def parts(pair: Pair) -> int:
        given = pair.moving_slice is not None or pair.fixed_slice is not None
        counts = slices(pair.moving), slices(pair.fixed)
        return 1 if given or counts[0] != counts[1] else counts[0]

    return sum(map(parts, manifest))
