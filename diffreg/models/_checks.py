"""Checks of what every network is given and built from."""

from __future__ import annotations

from torch import Tensor


def check_dimensions(dimensions: int) -> None:
    if dimensions != 2:
        raise ValueError(
            f"dimensions must be 2, got {dimensions}: the networks are 2-D so far; register a "
            "volume slice by slice"
        )


def check_integration_steps(steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"integration_steps must be a whole number >= 0, got {steps!r}")


def check_images(moving: Tensor, fixed: Tensor) -> None:
    """Raises unless both are floating-point images (N, 1, *S) of one shape."""
    for name, image in (("moving", moving), ("fixed", fixed)):
        if not isinstance(image, Tensor) or not image.is_floating_point():
            found = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(f"{name} must be a floating-point tensor, got {found}")
        if image.ndim == 5:
            raise ValueError(
                f"{name} must be (N, 1, H, W), got the volume {list(image.shape)}: the networks "
                "are 2-D so far"
            )
        if image.ndim != 4 or image.shape[1] != 1 or 0 in image.shape[2:]:
            raise ValueError(f"{name} must be (N, 1, H, W), got {list(image.shape)}")
    if moving.shape != fixed.shape:
        raise ValueError(
            f"moving must have the shape of fixed, {list(fixed.shape)}, got {list(moving.shape)}"
        )
