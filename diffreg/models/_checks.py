"""Checks of what every network is given and built from."""

from __future__ import annotations

from torch import Tensor

_SHAPES = {2: "(N, 1, H, W)", 3: "(N, 1, D, H, W)"}
_KINDS = {2: "image", 3: "volume"}
_OTHERWISE = {
    2: "the network is of images (dimensions = 2): register volumes slice by slice (--slice K, or "
    "a manifest), or take one of volumes (dimensions = 3)",
    3: "the network is of volumes (dimensions = 3): give whole ones, or take one of images",
}


def check_dimensions(dimensions: int) -> None:
    if dimensions not in _SHAPES:
        raise ValueError(f"dimensions must be 2 (images) or 3 (volumes), got {dimensions}")


def check_integration_steps(steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"integration_steps must be a whole number >= 0, got {steps!r}")


def check_images(moving: Tensor, fixed: Tensor, dimensions: int) -> None:
    """Raises unless both are floating-point images (N, 1, *S) of one shape, D sizes in it."""
    wanted = _SHAPES[dimensions]
    for name, image in (("moving", moving), ("fixed", fixed)):
        if not isinstance(image, Tensor) or not image.is_floating_point():
            found = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(f"{name} must be a floating-point tensor, got {found}")
        other = image.ndim - 2
        if other != dimensions and other in _KINDS:
            raise ValueError(
                f"{name} must be {wanted}, got the {_KINDS[other]} {list(image.shape)}: "
                f"{_OTHERWISE[dimensions]}"
            )
        if other != dimensions or image.shape[1] != 1 or 0 in image.shape[2:]:
            raise ValueError(f"{name} must be {wanted}, got {list(image.shape)}")
    if moving.shape != fixed.shape:
        raise ValueError(
            f"moving must have the shape of fixed, {list(fixed.shape)}, got {list(moving.shape)}"
        )
