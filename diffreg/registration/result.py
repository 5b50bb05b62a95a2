"""What comes of registering one pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from diffreg.affine.start import Start
from diffreg.data.geometry import Image
from diffreg.data.given import in_kind
from diffreg.data.grid import in_words
from diffreg.data.prepare import Compared, Prepared
from diffreg.data.resampling import resample_to, usual_fill
from diffreg.fields import FoldCertificate, fold_certificate
from diffreg.registration.transforms import whole_map
from diffreg.registration.use import Inverse, applied, inverse_of, points_moved
from diffreg.system.torch_modes import usual_modes
from diffreg.transforms import Chain

# Similarities that compare intensities as they are; after the others, differences mean nothing.
SAME_CONTRAST = {"ssd", "ncc", "lncc"}


@dataclass(frozen=True, repr=False)
class Registration:
    """What came of registering one pair.

    Args:
        prepared: the pair as it was compared.
        displacement: (1, D, *S), float32, fixed voxels, array axes.
        values: (1, 1, *S), the moving image's intensities at p + u(p), `fill` outside the image.
        moving_on_fixed: (1, 1, *S), the same by the headers alone.
        compared: both before and after, normalised, and the voxels on which the metrics are taken.
        fill: the intensity outside the moving image.
        method: "variational", "network" or "refined network".
        similarity: what was minimised, such as "ncc".
        seconds: what finding the displacement took.
        metrics: as in metrics.json.
        start: where it started, and how that was found.
        given: the moving image in the kind that it was given in.
    """

    prepared: Prepared
    displacement: Tensor
    values: Tensor
    moving_on_fixed: Tensor
    compared: Compared
    fill: float
    method: str
    similarity: str
    seconds: float
    metrics: dict[str, Any]
    start: Start = field(default_factory=Start)
    given: Any = None

    @property
    @usual_modes()
    def warped(self) -> Any:
        """The moving image on the fixed grid, in the kind that it was given in."""
        return in_kind(self.values, self.fixed, self.given)

    @property
    def affine(self) -> np.ndarray:
        """(4, 4), RAS mm, from the fixed image's space to the moving one's."""
        return self.prepared.affine

    @property
    def moving(self) -> Image:
        """The moving image, where the affine places it."""
        return self.prepared.moving

    @property
    def fixed(self) -> Image:
        """The fixed image as read."""
        return self.prepared.fixed

    @property
    def mask(self) -> Tensor:
        """(1, 1, *S), 1 where the images are compared before and after, else 0."""
        return self.compared.mask

    @usual_modes()
    def apply(self, image: Any, interpolation: str | None = None, fill: float | None = None) -> Any:
        """Another image, or labels, of the moving side on the fixed grid; or points, moved.

        Args:
            image: as `diffreg.register` takes them, sampled once through the whole map; or an
                array (K, 3) of points of the fixed image, RAS mm, (K, 2) where it has no third
                axis, which `diffreg.registration.use.points_moved` moves.
            interpolation: "linear" or "nearest"; None: nearest where it looks like labels.
            fill: outside the image; None: 0 for labels, else as in `register`.

        Returns:
            In the kind that it was given in.

        Raises:
            TypeError, ValueError: neither an image nor points.
        """
        whole = self.fixed, self.displacement, self.affine
        if self._are_points(image):
            return points_moved(np.asarray(image), *whole)
        return applied(image, self.prepared.as_given, *whole, interpolation, fill)

    def _are_points(self, image: Any) -> bool:
        """Whether an array is a list of points: an image has as many axes as the moving one."""
        if not isinstance(image, np.ndarray | Tensor) or image.ndim != 2:
            return False
        return len(self.fixed.shape) == 3 or image.shape[1] < 4 < min(self.moving.shape)

    @property
    @usual_modes()
    def transform(self) -> Chain:
        """From the fixed image's space to the moving one's: the displacement, then the affine.

        Outside the fixed grid the displacement moves nothing, as in the files and in ITK; `apply`
        repeats its border for points there.
        """
        return whole_map(self.displacement, self.affine, self.fixed.grid)

    @cached_property
    @usual_modes()
    def inverse(self) -> Inverse:
        """The way back, with its residual.

        Raises:
            ValueError: the displacement folds.
        """
        return inverse_of(self.fixed, self.displacement, self.affine)

    @property
    def warnings(self) -> list[str]:
        """What speaks against the result, one sentence each."""
        return list(self.metrics.get("warnings", ()))

    @cached_property
    @usual_modes()
    def certificate(self) -> FoldCertificate:
        """Whether the displacement folds, proven."""
        return fold_certificate(self.displacement)

    def __repr__(self) -> str:
        size = in_words(self.fixed.shape)
        lines = [f"Registration of {self.moving.name} to {self.fixed.name}, {size}:"]
        lines += [f"  {line}" for line in (*self.how, self._fit, self._map)]
        return "\n".join([*lines, *(f"  warning: {w}" for w in self.warnings)])

    @property
    def verdict(self) -> str:
        """The result in one line: how well it fits, then whether it folds."""
        return f"{self._fit}, {self._map}"

    @property
    def _fit(self) -> str:
        before, after = self.metrics["before"], self.metrics["after"]
        said = [
            f"NCC {before['ncc']:.3f} -> {after['ncc']:.3f}",
            f"MI {before['mutual_information']:.3f} -> {after['mutual_information']:.3f}",
        ]
        if "dice" in self.metrics:
            dice = self.metrics["dice"]
            said.append(f"mean Dice {dice['before']:.3f} -> {dice['after']:.3f}")
        if "landmarks" in self.metrics:
            found = self.metrics["landmarks"]
            unit = "pixels" if self.fixed.kind == "png" else "mm"
            first, last = (found[f"{when}_mm"]["mean"] for when in ("before", "after"))
            said.append(f"landmarks {first:.2f} -> {last:.2f} {unit}")
        return self._doubt + ", ".join(said)

    @property
    def _map(self) -> str:
        return (
            f"compared on {self.metrics['compared_percent']:.3g} % of the voxels, "
            f"{self.metrics['folded_percent']:.3g} % of the cells folded, "
            f"smallest determinant {self.metrics['min_determinant']:.3f}, "
            f"{self.seconds:.2f} s ({self.method}, {self.similarity})"
        )

    @property
    def how(self) -> list[str]:
        """What was done beside the warp, and why: a line each."""
        lines = []
        if self.start.found is not None:
            words = self.start.found.words
            words = words.replace(" mm", " pixels") if self.fixed.kind == "png" else words
            lines.append(f"affine start: {words}")
        if self.metrics.get("affine", {}).get("kind") == "given":
            lines.append(f"start: given, {_begun(self.metrics.get('start'))}")
        found = self.metrics.get("contrast")
        if found is not None:
            lines.append(
                f"contrast: squared correlation {found['correlation'] ** 2:.2f}"
                f"{', falling' if found['correlation'] < 0 else ''}, correlation ratio "
                f"{found['correlation_ratio']:.2f}, so {_kind(found)}: "
                f"{self.similarity.replace('+', ' + ')}"
            )
        return lines

    @property
    def _doubt(self) -> str:
        count = len(self.metrics.get("warnings", ()))
        return f"doubtful ({count} warning{'s' if count > 1 else ''}): " if count else ""


def _begun(start: Mapping[str, Any] | None) -> str:
    """What was given to begin with, of metrics.json's `start`."""
    if start is None:
        return "an affine map"
    folds = start["folded_percent"]
    return (
        f"with a field: NCC {start['ncc']:.3f}, MI {start['mutual_information']:.3f} there"
        f"{f', {folds:.3g} % of its cells folded, smoothed there first' if folds else ''}"
    )


def _kind(contrast: Mapping[str, Any]) -> str:
    """What the contrasts were found to be, of metrics.json's `contrast`."""
    if not contrast["across"]:
        return "one contrast"
    edges = contrast.get("edges_in_common")
    return "they differ" if edges is None else f"they differ, edges in common {edges:.2f}"


def registration_of(
    prepared: Prepared,
    displacement: Tensor,
    method: str,
    similarity: str,
    seconds: float,
    metrics: dict[str, Any],
    fill: float | None = None,
) -> Registration:
    """A pair with its displacement: the moving image before and after, and what is compared.

    Args:
        prepared: the pair.
        displacement: (1, D, *S), float32, fixed voxels, array axes.
        method, similarity, seconds, metrics: as in `Registration`.
        fill: None: `diffreg.data.resampling.usual_fill`.

    Raises:
        ValueError: the displacement leaves nothing to compare.
    """
    moving, fixed = prepared.moving, prepared.fixed
    fill = usual_fill(moving) if fill is None else fill
    return Registration(
        prepared=prepared,
        displacement=displacement,
        values=resample_to(moving, fixed, displacement, fill=fill),
        moving_on_fixed=resample_to(prepared.as_given, fixed, fill=fill),
        compared=prepared.compared(displacement),
        fill=fill,
        method=method,
        similarity=similarity,
        seconds=seconds,
        metrics=metrics,
    )
