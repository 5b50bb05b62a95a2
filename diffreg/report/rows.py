"""What a page of many pairs keeps of a volume: six small pictures and its folds.

A hundred of them are some megabytes where a hundred volumes would be gigabytes of memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffreg.report.determinants import Folds, folds_of
from diffreg.report.panels import PairView, jpeg, overlays
from diffreg.report.volumes import slices_of, upright_volume

SIDES = (160, 128, 96, 64, 48)  # pixels of a small picture at most, the first that fits
MOST_BYTES = 11_000  # of it: six for each of a hundred pairs take nine megabytes


@dataclass(frozen=True)
class SmallPlane:
    """One plane of a pair, fixed green and moving magenta.

    Args:
        name: of the plane.
        before, after: JPEG files.
        aspect: height over width in physical units.
    """

    name: str
    before: bytes
    after: bytes
    aspect: float


@dataclass(frozen=True)
class PairRow:
    """One registered pair of volumes in a row of small pictures; `pair_row` makes it.

    Args:
        title: what the pair is called.
        planes: three.
        folds: of its cells.
        metrics: name -> number, text, or (before, after).
    """

    title: str
    planes: tuple[SmallPlane, ...]
    folds: Folds
    metrics: Mapping[str, Any] = field(default_factory=dict)


def pair_row(view: PairView) -> PairRow:
    """The row of a pair, so that its arrays can be let go before the next pair is read.

    Args:
        view: a volume.

    Returns:
        What `write_report` takes in the place of the pair.

    Example:
        >>> import numpy as np
        >>> volume = np.eye(4)[..., None] * np.ones(4)
        >>> row = pair_row(PairView("a to b", *[volume] * 3, np.zeros((3, 4, 4, 4))))
        >>> row.title, row.folds.folded, len(row.planes)
        ('a to b', 0, 3)
    """
    volume = upright_volume(view)
    planes = []
    for plane, cut in slices_of(volume):
        before, after = (_small(picture) for picture in overlays(cut))
        planes.append(SmallPlane(plane.name, before, after, cut.aspect))
    return PairRow(view.title, tuple(planes), folds_of(volume.cells), view.metrics)


def kept(view: PairView, pairs: int) -> PairView | PairRow:
    """What a page of so many pairs keeps of one: of a volume among others its row.

    Example:
        >>> import numpy as np
        >>> volume = np.ones((4, 4, 4))
        >>> pair = PairView("a to b", *[volume] * 3, np.zeros((3, 4, 4, 4)))
        >>> type(kept(pair, 1)).__name__, type(kept(pair, 2)).__name__
        ('PairView', 'PairRow')
    """
    return pair_row(view) if view.is_volume and pairs > 1 else view


def _small(picture: np.ndarray) -> bytes:
    """As fine as there is room for."""
    for longest in SIDES:
        file = jpeg(picture, longest)
        if len(file) <= MOST_BYTES:
            break
    return file
