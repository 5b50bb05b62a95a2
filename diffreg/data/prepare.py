"""Two images made ready to be registered: compared where both are, normalised, on one grid."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffreg.data.comparable import (
    check_contrast,
    check_type,
    compared_region,
    selected,
    tell_padding,
)
from diffreg.data.geometry import Image
from diffreg.data.normalization import Normalization
from diffreg.data.resampling import coverage, resample_to
from diffreg.data.resolution import as_coarse_as

# Of the moving image round the fixed grid: part of an axis at each end, and voxels at least.
MARGIN, LEAST_MARGIN = 0.125, 4


class Compared(NamedTuple):
    """A pair before and after a displacement, (1, 1, *S) each: what metrics are taken of.

    The images are in [0, 1], on the fixed grid; the mask is 1 at the voxels that count, the same
    ones before and after, else 0.
    """

    before: Tensor
    after: Tensor
    fixed: Tensor
    mask: Tensor


class Surroundings(NamedTuple):
    """A moving image that reaches further than the fixed grid."""

    values: Tensor  # (1, 1, *larger), in [0, 1]
    margin: list[int]  # voxels before the fixed grid's first, along each axis


@dataclass(frozen=True)
class Prepared:
    """A pair as a registration sees it.

    Args:
        moving: the moving image as read, where the affine places it.
        fixed: the fixed image as read.
        moving_mask: voxels of the moving image that count where it is > 0, or None.
        normalization: of both.
        limits: the moving intensities that became 0 and 1, (1, 1, 2).
        as_seen: the moving image, as coarse as the fixed grid.
        moving_values: (1, 1, *S) in [0, 1], on the fixed grid, the edge repeated.
        fixed_values: (1, 1, *S) in [0, 1].
        mask: (1, 1, *S), 1 where the images are compared at the start, else 0.
        fixed_mask: voxels of the fixed image that count where it is > 0, or None.
        affine: (4, 4) T, RAS mm, from the fixed image's space to the moving one's.
    """

    moving: Image
    fixed: Image
    moving_mask: Image | None
    normalization: Normalization
    limits: Tensor
    as_seen: Image
    moving_values: Tensor
    fixed_values: Tensor
    mask: Tensor
    fixed_mask: Image | None = None
    affine: np.ndarray = field(default_factory=lambda: np.eye(4))

    @property
    def as_given(self) -> Image:
        """The moving image where its own header has it."""
        return self.moving.placed(np.linalg.inv(self.affine))

    @property
    def chosen(self) -> Tensor:
        """(1, 1, *S), 1 at the fixed voxels that are to be compared, covered or not, else 0."""
        chosen = torch.ones_like(self.mask)
        if self.fixed.valid is not None:
            chosen = chosen * self.fixed.valid.to(torch.float32)
        return chosen if self.fixed_mask is None else chosen * selected(self.fixed_mask, self.fixed)

    def surroundings(self) -> Surroundings:
        """The moving image on the fixed grid and round it, as far as it reaches there.

        What lies just outside the grid at the start may have to be fetched into it.
        """
        most = [max(LEAST_MARGIN, round(MARGIN * n)) for n in self.fixed.shape]
        grid = self.fixed.on(self.fixed.grid.extended(most, most))
        try:
            reached = coverage(self.moving, grid)[0, 0] > 0
        except ValueError:  # two tilted slices part beyond the grid on which they are one
            return Surroundings(self.moving_values, [0] * len(most))
        before, after = [], []
        for axis, (n, most_here) in enumerate(zip(self.fixed.shape, most, strict=True)):
            there = reached.movedim(axis, 0).flatten(1).any(1)
            first, last = there.nonzero().flatten()[[0, -1]].tolist()
            before.append(max(0, most_here - first))
            after.append(max(0, last + 1 - n - most_here))
        if not any(before) and not any(after):
            return Surroundings(self.moving_values, before)
        grid = self.fixed.on(self.fixed.grid.extended(before, after))
        values = resample_to(self.as_seen, grid, fill=None)
        return Surroundings(self.normalization.scale(values, self.limits), before)

    @property
    def weights(self) -> Tensor | None:
        """The mask, None where it is 1 everywhere."""
        return None if bool(self.mask.all()) else self.mask

    def compared(self, displacement: Tensor) -> Compared:
        """The pair before and after a displacement, on the voxels that both have.

        Those are in the fixed mask, and inside the moving image, and its mask, at the start and
        where the displacement leads.

        Args:
            displacement: (1, D, *S), fixed voxels, array axes.

        Raises:
            ValueError: it leaves nothing to compare.
        """
        inside = self.mask * coverage(self.moving, self.fixed, displacement)
        if self.moving_mask is not None:
            inside = inside * selected(self.moving_mask, self.fixed, displacement)
        after = resample_to(self.as_seen, self.fixed, displacement, fill=None)
        after = self.normalization.scale(after, self.limits)
        check_contrast(self.moving, after, inside, "where the displacement leads")
        check_contrast(self.fixed, self.fixed_values, inside, "where the displacement leads")
        return Compared(self.moving_values, after, self.fixed_values, inside)


class PairImages(NamedTuple):
    """The images of a pair as read, and its masks where it has them."""

    moving: Image
    fixed: Image
    mask: Image | None = None  # of the fixed image
    moving_mask: Image | None = None

    def clipped(self, normalization: Normalization | None) -> PairImages:
        """With what lies outside the normalization's window, where it has one, at its ends."""
        if normalization is None or normalization.window is None:
            return self

        low, high = normalization.window

        def within(image: Image) -> Image:
            data = image.data if image.data.is_floating_point() else image.data.float()
            return replace(image, data=data.clamp(low, high))

        return self._replace(moving=within(self.moving), fixed=within(self.fixed))

    def prepared(
        self, normalization: Normalization | None = None, affine: np.ndarray | None = None
    ) -> Prepared:
        """The pair made ready, as `prepare` does."""
        masks = {"mask": self.mask, "moving_mask": self.moving_mask}
        return prepare(self.moving, self.fixed, normalization=normalization, affine=affine, **masks)


def prepare(
    moving: Image,
    fixed: Image,
    mask: Image | None = None,
    normalization: Normalization | None = None,
    moving_mask: Image | None = None,
    affine: np.ndarray | None = None,
) -> Prepared:
    """Bring the moving image on the fixed grid through both headers, and both to [0, 1].

    The percentiles are those of the voxels that are compared: in the masks, and where the moving
    image is. A moving image that is finer than the fixed grid is smoothed to its resolution.

    Args:
        moving: the image to be warped.
        fixed: the image that stays.
        mask: voxels of the fixed image that count where it is > 0; through its header on any grid.
        normalization: None: the default percentiles.
        moving_mask: voxels of the moving image that count where it is > 0; on any grid as well.
        affine: (4, 4) T, RAS mm, from the fixed image's space to the moving one's, which moves the
            moving image and its mask as a whole; None: the identity.

    Returns:
        The pair.

    Raises:
        ValueError: the images share no plane, no voxel or no contrast, or a mask is empty.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from diffreg.data.geometry import Image
        >>> from diffreg.data.prepare import prepare
        >>> image = Image(torch.arange(6.0).reshape(1, 1, 2, 3), np.eye(4))
        >>> prepare(image, image).moving_values.max().item()
        1.0
    """
    named = {"moving": moving, "fixed": fixed, "mask": mask, "moving_mask": moving_mask}
    for name, image in named.items():
        check_type(name, image, Image, optional="mask" in name)
    check_type("normalization", normalization, Normalization, optional=True)
    affine = np.eye(4) if affine is None else affine
    moving = moving.placed(affine)
    moving_mask = None if moving_mask is None else moving_mask.placed(affine)
    inside = compared_region(moving, fixed, mask, moving_mask)
    as_seen = as_coarse_as(fixed, moving)
    # The edge is repeated: to a registration, the end of the field of view would be an edge.
    on_fixed = resample_to(as_seen, fixed, fill=None)
    for image, values in ((moving, on_fixed), (fixed, fixed.data)):
        check_contrast(image, values, inside, "where the two images are compared")
    normalization = normalization or Normalization()
    if normalization.window is None:
        tell_padding(fixed, fixed.data[inside > 0])
        if mask is None and moving_mask is None:  # resampled, values between padding and tissue
            tell_padding(moving, moving.data)
    limits = normalization.limits(on_fixed, inside)
    values = normalization.scale(on_fixed, limits)
    fixed_values = normalization(fixed.data, inside)
    for image, normalized in ((moving, values), (fixed, fixed_values)):
        check_contrast(image, normalized, inside, "between the limits of the normalisation")
    return Prepared(
        *(moving, fixed, moving_mask, normalization, limits, as_seen, values, fixed_values, inside),
        fixed_mask=mask,
        affine=affine,
    )


def relative_spacing(fixed: Image) -> tuple[float, ...]:
    """The voxel's proportions: spacing / min(spacing), which the energies weigh derivatives by.

    Only the proportions count: in millimetres, the same weights would mean another regularisation
    on every grid.

    Args:
        fixed: the fixed image.

    Returns:
        One number >= 1 for each array axis.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from diffreg.data.geometry import Image
        >>> from diffreg.data.prepare import relative_spacing
        >>> relative_spacing(Image(torch.zeros(1, 1, 2, 2), np.diag([3.0, 1.5, 1, 1])))
        (2.0, 1.0)
    """
    finest = min(fixed.spacing)
    return tuple(round(length / finest, 6) for length in fixed.spacing)
