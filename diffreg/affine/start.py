"""The affine map that a registration starts from: asked for, known, or none."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from diffreg.affine.parameters import KINDS
from diffreg.affine.register import AffineStart, compared_by, found_affine
from diffreg.data.comparable import check_images, check_type
from diffreg.data.geometry import Image
from diffreg.data.grid import check_affine
from diffreg.data.normalization import Normalization
from diffreg.data.prepare import PairImages
from diffreg.ops._checks import check_choice
from diffreg.system.files import FileWarning

_ALIGNED = 2  # codes from here on say that an image lies where another one or an atlas does


@dataclass(frozen=True)
class Start:
    """Where a registration starts.

    Args:
        matrix: (4, 4) T, RAS mm, from the fixed image's space to the moving one's.
        found: how it was found, None where it was not looked for.
        metrics: as in metrics.json.
        displacement: (1, D, *S), fixed voxels, which comes before it, where that is known too.
    """

    matrix: np.ndarray = field(default_factory=lambda: np.eye(4))
    found: AffineStart | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    displacement: Tensor | None = None


def affine_start(
    pair: PairImages,
    affine: str | np.ndarray = "auto",
    similarity: str | Iterable[str] | None = "auto",
    search: bool = False,
    normalization: Normalization | None = None,
    placed: bool = True,
) -> Start:
    """The affine start of a pair.

    Args:
        pair: the images and their masks.
        affine: "auto", "none", one of `KINDS`, or a map (4, 4).
        similarity: what is minimised after it, one measure or several.
        search: look for large turns too.
        normalization: whose window counts here too.
        placed: whether headers say where the images lie; those of arrays say nothing.

    Raises:
        TypeError, ValueError: no such kind, no map, or images that cannot be compared.

    Example: `affine_start(PairImages(moving, fixed)).matrix`
    """
    if isinstance(affine, np.ndarray):
        if affine.shape == (4, 4) and not abs(np.linalg.det(affine)) > 1e-9:
            raise ValueError("affine is singular: it takes the fixed image to a plane")
        check_affine(affine, "affine")
        matrix = affine.astype(np.float64)
        return Start(matrix, None, {"affine": {"kind": "given", "matrix": matrix.tolist()}})
    check_choice("affine", affine, ("auto", "none", *KINDS))
    kind = _usual(pair.moving, pair.fixed, placed) if affine == "auto" else affine
    if kind == "none":
        return Start()
    check_images(*pair[:2], pair[2:])  # as the registration after it does
    pair = pair.clipped(normalization)
    check_type("search", search, bool)
    images = pair.moving, pair.fixed
    masks = pair.mask, pair.moving_mask
    found = found_affine(*images, kind, compared_by(similarity), *masks, search)
    names = ("kind", "similarity", "start", "before", "after", "kept", "seconds")
    said: dict[str, Any] = {name: getattr(found, name) for name in names}
    return Start(found.matrix, found, {"affine": {**said, "matrix": found.matrix.tolist()}})


@dataclass(frozen=True)
class AffineStarts:
    """The affine map that `register` would start from, of one pair after the other.

    Args:
        kind: "auto", "none", or one of `KINDS`.
        similarity: what is minimised after it, measures joined by "+".

    Example: `AffineStarts("auto", "ncc+lncc")(PairImages(moving, fixed))`
    """

    kind: str
    similarity: str = "auto"

    def __call__(self, pair: PairImages) -> np.ndarray:
        """(4, 4), RAS mm, from the fixed image's space to the moving one's."""
        return affine_start(pair, self.kind, self.similarity).matrix


def _usual(moving: Image, fixed: Image, placed: bool) -> str:
    """Affine for volumes, and for slices whose headers do not say that they are aligned.

    A volume of one plane that is not its last axis is no slice to us; a map in space of which one
    plane is compared would be any one across it.
    """
    thin = [image for image in (moving, fixed) if 1 in image.shape]
    if len(fixed.shape) == 3 and thin:
        warnings.warn(
            f"{thin[0].name} has one voxel along an axis: no affine start is looked for (--affine, "
            "in Python affine=, asks for one); with that axis last it is a slice, which moves in "
            "its plane",
            FileWarning,
            stacklevel=2,
        )
        return "none"
    if len(fixed.shape) == 3:
        return "affine"
    return "none" if placed and _aligned(moving, fixed) else "affine"


def _aligned(moving: Image, fixed: Image) -> bool:
    """Whether headers say that two slices lie where they belong."""
    if moving.kind != "nifti" or fixed.kind != "nifti":
        return False
    same = moving.shape == fixed.shape and np.allclose(moving.affine, fixed.affine, atol=1e-3)
    return same or all(_code(image) >= _ALIGNED for image in (moving, fixed))


def _code(image: Image) -> int:
    """The larger of the codes that a NIfTI header gives its forms; 0 without one."""
    if image.header is None:
        return 0
    return max(int(image.header["qform_code"]), int(image.header["sform_code"]))
