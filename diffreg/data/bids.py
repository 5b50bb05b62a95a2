"""The images of a BIDS folder by what their names say: sub-01/[ses-1/]anat/sub-01_T1w.nii.gz.

FOLDER:T1w          every ordered pair of the images whose names end in _T1w
FOLDER:T2w,T1w      moving, fixed: every such pair of one subject, which is their group
FOLDER:acq-fast_T1w entities narrow what is taken, in any order
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from diffreg.data.folders import folder_images
from diffreg.data.pairing import Block, Crossed, Listed, Member, Pair, Pairs

_ENDINGS = (".nii.gz", ".nii")


class Named(NamedTuple):
    """An image, and what its name says."""

    path: Path
    entities: frozenset[str]
    suffix: str

    @property
    def subject(self) -> str:
        """Such as "sub-01"."""
        return next(entity for entity in self.entities if entity.startswith("sub-"))


def is_bids(path: str | Path) -> bool:
    """Whether a folder holds subjects, sub-*, and no image beside them.

    Example:
        >>> from diffreg.data.bids import is_bids
        >>> is_bids("/")
        False
    """
    path = Path(path)
    if not path.is_dir() or not any(part.is_dir() for part in path.glob("sub-*")):
        return False
    return not folder_images(path)


def bids_pairs(folder: str | Path, query: str) -> Pairs:
    """The pairs of a BIDS folder.

    Args:
        folder: with subjects.
        query: which images, one name or two, as above.

    Returns:
        The pairs; a label map or mask is an image like any other, by its suffix.

    Raises:
        ValueError: a query that is none, or nothing fits it.

    Example: `bids_pairs("bids", "T2w,T1w")`
    """
    folder = Path(folder)
    row, found = f"{folder}:{query}", _images(folder)
    kinds = [kind.strip() for kind in query.split(",")]
    if not all(kinds) or len(kinds) > 2:
        suffixes = ", ".join(dict.fromkeys(one.suffix for one in found)) or "no image"
        raise ValueError(
            f"{folder} is a BIDS folder: say which images, as {folder}:T1w (every ordered pair) or "
            f"{folder}:T2w,T1w (moving,fixed of one subject), got {query!r}; it has {suffixes}"
        )
    sides = [_fitting(found, kind, row) for kind in kinds]
    pairs = Pairs(_blocks(sides, row))
    if not pairs:
        of = "of one subject " if len(sides) > 1 else ""
        raise ValueError(f"{row}: there are no two images {of}to make a pair")
    return pairs


def _blocks(sides: Sequence[Sequence[Named]], row: str) -> list[Block]:
    if len(sides) == 1:
        return [_crossed(sides[0], "", row)]
    blocks: list[Block] = []
    for subject in dict.fromkeys(one.subject for one in sides[0]):
        moving, fixed = ([one for one in side if one.subject == subject] for side in sides)
        if moving == fixed:
            blocks.append(_crossed(moving, subject, row))
            continue
        blocks += [
            Listed(Pair(a.path, b.path, group=subject, row=row))
            for a, b in product(moving, fixed)
            if a != b
        ]
    return blocks


def _crossed(images: Sequence[Named], group: str, row: str) -> Crossed:
    return Crossed(tuple(Member(one.path, row=row) for one in images), group)


def _fitting(images: Sequence[Named], kind: str, row: str) -> list[Named]:
    """Those that have a suffix and some entities."""
    *entities, suffix = kind.split("_")
    fitting = [one for one in images if one.suffix == suffix and one.entities >= {*entities}]
    if fitting:
        return fitting
    suffixes = ", ".join(dict.fromkeys(one.suffix for one in images))
    raise ValueError(f"{row}: no image is {kind!r}; the suffixes are {suffixes or 'none'}")


def _images(folder: Path) -> list[Named]:
    """All images below the subjects, in the order of their paths."""
    files = [*folder.glob("sub-*/*/sub-*"), *folder.glob("sub-*/ses-*/*/sub-*")]
    found = []
    for file in sorted(files):
        ending = next((end for end in _ENDINGS if file.name.lower().endswith(end)), None)
        if ending is None:
            continue
        *entities, suffix = file.name[: -len(ending)].split("_")
        if entities and all("-" in entity for entity in entities) and "-" not in suffix:
            found.append(Named(file, frozenset(entities), suffix))
    return found
