"""One pair in, one result out.

Called by the command line; `register` and `write_registration` are the interface for scripts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from diffreg import __version__
from diffreg.data.geometry import Image, coverage, resample_to
from diffreg.data.images import Normalization
from diffreg.losses import Objective
from diffreg.metrics import folding, mutual_information, ncc, relative_ssd
from diffreg.outputs import write_registration
from diffreg.variational import register_variational

__all__ = [
    "Registration",
    "compared_region",
    "register",
    "relative_spacing",
    "write_registration",
]

# Similarities that compare intensities as they are; after the others, differences mean nothing.
_SAME_CONTRAST = {"ssd", "ncc"}


@dataclass(frozen=True)
class Registration:
    """What came of registering one pair.

    Args:
        moving: the moving image as read.
        fixed: the fixed image as read.
        displacement: (1, 2, *S), float32, fixed voxels, array axes.
        warped: (1, 1, *S), the moving image's intensities at p + u(p), 0 outside its field of view.
        moving_on_fixed: (1, 1, *S), the same without a displacement.
        mask: (1, 1, *S), 1 where the images were compared, else 0.
        method: "variational" or "network".
        similarity: what was minimised, such as "ncc".
        seconds: what finding the displacement took.
        metrics: as in metrics.json.
    """

    moving: Image
    fixed: Image
    displacement: Tensor
    warped: Tensor
    moving_on_fixed: Tensor
    mask: Tensor
    method: str
    similarity: str
    seconds: float
    metrics: dict[str, Any]

    @property
    def verdict(self) -> str:
        """The result in one line."""
        before, after = self.metrics["before"], self.metrics["after"]
        return (
            f"NCC {before['ncc']:.3f} -> {after['ncc']:.3f}, "
            f"MI {before['mutual_information']:.3f} -> {after['mutual_information']:.3f}, "
            f"smallest determinant {self.metrics['min_determinant']:.3f}, "
            f"{self.metrics['folded_percent']:.2g} % of the cells folded, "
            f"{self.seconds:.2f} s ({self.method}, {self.similarity})"
        )


def register(
    moving: Image,
    fixed: Image,
    network: nn.Module | None = None,
    objective: Objective | None = None,
    mask: Image | None = None,
    normalization: Normalization | None = None,
    similarity: str | None = None,
    levels: int = 3,
    iterations: int = 60,
    progress: Callable[..., Any] | None = None,
) -> Registration:
    """Find the displacement that brings the moving image onto the fixed one.

    Both images are normalised to [0, 1] and the moving one is resampled on the fixed grid through
    both headers; where its field of view does not cover that grid, nothing is compared.

    Args:
        moving: the image to be warped.
        fixed: the image that stays; its grid is the result's.
        network: called (moving, fixed) -> displacement; None: the variational method.
        objective: what the variational method minimises; None: `Objective("ncc")` with the voxels'
            proportions (`relative_spacing`).
        mask: voxels of the fixed image that count where it is > 0; through its header on any grid.
        normalization: as the network was trained with; None: the default percentiles.
        similarity: what the network was trained with, if known; says which metrics make sense.
        levels: of the variational method.
        iterations: of the variational method, on each level.
        progress: of the variational method.

    Returns:
        The registration.

    Raises:
        ValueError: the images share no plane, no voxel or no contrast, or the mask is empty.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from diffreg.data.geometry import Image
        >>> from diffreg.registration import register
        >>> x = torch.arange(16.0).reshape(16, 1)
        >>> blob = lambda at: torch.exp(-((x - at) ** 2 + (x.T - 8) ** 2) / 18)[None, None]
        >>> pair = (Image(blob(at), np.eye(4)) for at in (9, 7))
        >>> register(*pair, levels=1, iterations=10).metrics["folded_percent"]
        0.0
    """
    inside = compared_region(moving, fixed, mask)
    normalization = normalization or Normalization()
    objective = objective or Objective("ncc", spacing=relative_spacing(fixed))
    limits = normalization.limits(moving.data)
    # The border is repeated: to a registration, an edge of the field of view would be an edge.
    flat = normalization.scale(resample_to(moving, fixed, padding="border"), limits)
    images = (flat, normalization(fixed.data))
    start = time.perf_counter()
    if network is None:
        displacement = register_variational(
            *images,
            objective,
            levels=levels,
            iterations=iterations,
            mask=None if bool(inside.all()) else inside,
            progress=progress,
        )
    else:
        displacement = _predict(network, *images)
    seconds = time.perf_counter() - start
    names = "+".join(objective.similarity) if network is None else similarity or "as trained"
    displacement = displacement.detach().to("cpu", torch.float32)
    result = Registration(
        moving=moving,
        fixed=fixed,
        displacement=displacement,
        warped=resample_to(moving, fixed, displacement),
        moving_on_fixed=resample_to(moving, fixed),
        mask=inside,
        method="variational" if network is None else "network",
        similarity=names,
        seconds=seconds,
        metrics={},
    )
    return replace(result, metrics=_metrics(result, normalization))


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
        >>> from diffreg.registration import relative_spacing
        >>> relative_spacing(Image(torch.zeros(1, 1, 2, 2), np.diag([3.0, 1.5, 1, 1])))
        (2.0, 1.0)
    """
    finest = min(fixed.spacing)
    return tuple(round(length / finest, 6) for length in fixed.spacing)


def compared_region(moving: Image, fixed: Image, mask: Image | None = None) -> Tensor:
    """Where two images are compared: in the mask and in the moving image's field of view.

    Args:
        moving: the image to be warped.
        fixed: the image that stays.
        mask: voxels that count where it is > 0; through its header on any grid.

    Returns:
        (1, 1, *S) float32 on the fixed grid, 1 inside and 0 outside.

    Raises:
        ValueError: the two cannot be registered, or nothing is left to compare.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from diffreg.data.geometry import Image
        >>> from diffreg.registration import compared_region
        >>> image = Image(torch.arange(6.0).reshape(1, 1, 2, 3), np.eye(4))
        >>> compared_region(image, image).sum().item()
        6.0
    """
    _check_kinds(moving, fixed)
    for image in (moving, fixed):
        _check_contrast(image)
    inside = coverage(moving, fixed)
    if mask is None:
        return inside
    _check_kinds(mask, fixed)
    chosen = resample_to(mask, fixed, interpolation="nearest") > 0
    if not chosen.any():
        raise ValueError(f"the mask {mask.name} selects no voxel of {fixed.name}")
    inside = inside * chosen.to(torch.float32)
    if not inside.any():
        raise ValueError(f"the mask {mask.name} selects no voxel that {moving.name} covers")
    return inside


def _check_kinds(image: Image, fixed: Image) -> None:
    if image.kind != fixed.kind:
        raise ValueError(
            f"{image.name} and {fixed.name} do not belong together: one is a PNG file, which has "
            "no physical coordinates; convert one of them"
        )


def _check_contrast(image: Image) -> None:
    first = image.data.flatten()[0]
    if bool((image.data == first).all()):
        raise ValueError(f"{image.name} is {float(first):g} everywhere: there is nothing to align")


def _predict(network: nn.Module, moving: Tensor, fixed: Tensor) -> Tensor:
    """The network's displacement, found where its parameters are; refused where it is none."""
    device = next((parameter.device for parameter in network.parameters()), moving.device)
    network.eval()
    with torch.no_grad():
        displacement = network(moving.to(device), fixed.to(device))
    expected = (1, 2, *fixed.shape[2:])
    if tuple(displacement.shape) != expected:
        raise ValueError(
            f"the network's displacement must be {expected}, got {tuple(displacement.shape)}"
        )
    if not bool(torch.isfinite(displacement).all()):
        raise ValueError("the network's displacement holds values that are NaN or infinite")
    return displacement


def _metrics(result: Registration, normalization: Normalization) -> dict[str, Any]:
    """What metrics.json holds; similarities of the normalised images, inside `result.mask`."""
    limits = normalization.limits(result.moving.data)
    fixed, mask = normalization(result.fixed.data), result.mask
    moving, warped = (
        normalization.scale(image, limits) for image in (result.moving_on_fixed, result.warped)
    )
    values: dict[str, Any] = {
        "version": __version__,
        "moving": result.moving.name,
        "moving_slice": result.moving.slice_index,
        "fixed": result.fixed.name,
        "fixed_slice": result.fixed.slice_index,
        "method": result.method,
        "similarity": result.similarity,
        "shape": list(result.fixed.shape),
        "spacing_mm": list(result.fixed.spacing),
    }
    for when, image in (("before", moving), ("after", warped)):
        values[when] = {
            "ncc": ncc(image, fixed, mask),
            "mutual_information": mutual_information(image, fixed, mask=mask, moving=moving),
        }
        if set(result.similarity.split("+")) <= _SAME_CONTRAST:
            values[when]["relative_ssd"] = relative_ssd(image, fixed, moving, mask)
    return {**values, **folding(result.displacement), "seconds": result.seconds}
