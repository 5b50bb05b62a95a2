"""Which pairs to train on: those of folders, files or a manifest, and a split by their groups."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from diffreg.data.folders import folder_images, left_out
from diffreg.data.images import count_slices, file_of
from diffreg.data.manifest import is_manifest, read_manifest
from diffreg.data.pairing import Crossed, Member, Pair, Pairs
from diffreg.data.slices import sliced


def find_pairs(
    images: Sequence[str | Path], slices: Sequence[int] = (), dimensions: int = 2
) -> Pairs:
    """Every ordered pair of different images, or the pairs of a manifest.

    Args:
        images: folders and image files; or one manifest (`diffreg.data.manifest`).
        slices: of volumes; none: all of them.
        dimensions: 3 takes volumes whole.

    Returns:
        The pairs, each made when it is asked for; of volumes, one for each slice, unless they are
        taken whole.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: there is nothing to pair, two volumes differ in their slices, or what is to be a
            volume is none.

    Example: `find_pairs(["colin27_t1.nii.gz", "mni152_t1.nii.gz"], slices=[0, 1])`
    """
    paths = [Path(image) for image in images]
    manifests = [path for path in paths if is_manifest(path)]
    if manifests and len(paths) > 1:
        raise ValueError(f"images must be one manifest or images, got {manifests[0]} and others")
    if manifests:
        pairs = read_manifest(manifests[0]).pairs
    else:
        pairs = Pairs([Crossed(tuple(map(Member, _files(paths))))])
    missing = [path for path in paths if not path.exists()]
    if not pairs and missing:
        raise FileNotFoundError(f"{missing[0]} does not exist")
    if not pairs:
        raise ValueError(
            "images must be at least two images to make a pair, got "
            f"{', '.join(map(str, paths)) or 'none'}"
        )
    if dimensions == 3:
        _check_whole(pairs, slices)
        return pairs
    if slices and all(count_slices(image) == 1 for image in pairs.images):
        raise ValueError(f"slices are for volumes; {pairs[0].moving} holds one image")
    return sliced(pairs, slices)


def _check_whole(pairs: Pairs, slices: Sequence[int]) -> None:
    """Raises unless the pairs are of volumes, of which no slice is asked for."""
    if slices:
        raise ValueError(
            f"slices must be left out where volumes are taken whole, got {list(slices)}"
        )
    counted = cache(count_slices)
    for pair in pairs.cover():
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
) -> tuple[Pairs, Pairs]:
    """Keep whole groups, such as patients, out of the training; never single pairs of one.

    Of images that are listed without groups each file is a group of its own: the pairs of files
    that are kept out validate, those of the others train, and those between the two do neither.

    Args:
        pairs: all of them.
        groups: the names of those to keep out.
        share: or which part of all groups, rounded, at least one, of files two; drawn by the seed.
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
    pairs = Pairs.of(pairs)
    names = pairs.groups
    if not groups and share == 0:
        return pairs, Pairs([])
    if names == [""]:
        return _split_by_file(pairs, groups, share, seed)
    for name in groups:
        if name not in names:
            raise ValueError(f"there is no group {name!r}; the groups are {', '.join(names)}")
    groups = groups or _drawn(names, share, 1, seed)
    kept = pairs.of_groups(lambda group: group not in groups)
    if not kept:
        raise ValueError(f"validation takes all {len(names)} groups, which leaves none to train on")
    return kept, pairs.of_groups(lambda group: group in groups)


def _split_by_file(
    pairs: Pairs, groups: Sequence[str], share: float, seed: int
) -> tuple[Pairs, Pairs]:
    """The same of pairs without groups: by the files of images that are listed."""
    crossed = [block for block in pairs.blocks if isinstance(block, Crossed)]
    if groups or len(crossed) < len(pairs.blocks):
        setting = "data.validation_groups" if groups else "data.validation_share"
        other = "" if len(crossed) < len(pairs.blocks) else "data.validation_share splits files; "
        raise ValueError(
            f"{setting}: the pairs have no groups to split by: {other}give the manifest a column "
            "group, or name the pairs to validate on in data.validation"
        )
    files = list(dict.fromkeys(file_of(one.image) for block in crossed for one in block.members))
    held = set(_drawn(files, share, 2, seed))
    kept, held_out = (
        pairs.of_images(lambda image: file_of(image) not in held),
        pairs.of_images(lambda image: file_of(image) in held),
    )
    if not kept or not held_out:
        raise ValueError(
            f"data.validation_share keeps {len(held)} of {len(files)} images out, which leaves no "
            f"pair to {'validate' if kept else 'train'} on: each side needs two images"
        )
    return kept, held_out


def _drawn(names: list[Any], share: float, least: int, seed: int) -> list[Any]:
    """A share of the names, rounded."""
    count = max(least, math.floor(share * len(names) + 0.5))
    order = np.random.default_rng([seed]).permutation(len(names))
    return [names[index] for index in order[:count]]


def _files(paths: Sequence[Path]) -> list[Path]:
    """The images among the paths, folders opened."""
    files: list[Path] = []
    for path in paths:
        inside = folder_images(path) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"the folder {path} holds no image{left_out(path)}")
        files += inside
    for file, times in Counter(files).items():
        if times > 1:
            raise ValueError(f"images must be different files, got {file} twice")
    return files
