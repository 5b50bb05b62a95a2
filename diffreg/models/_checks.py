"""Checks of what every network is given and built from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

_SHAPES = {2: "(N, 1, H, W)", 3: "(N, 1, D, H, W)"}
_KINDS = {2: "image", 3: "volume"}
_LAYERS: dict[int, tuple[type[nn.Module], ...]] = {
    2: (nn.Conv2d, nn.ConvTranspose2d),
    3: (nn.Conv3d, nn.ConvTranspose3d),
}
_OTHERWISE = {
    2: "the network is of images (dimensions = 2): register volumes slice by slice (--slice K, "
    "in Python read_image(path, K), or a manifest), or take one of volumes (dimensions = 3)",
    3: "the network is of volumes (dimensions = 3): give whole ones, or take one of images",
}


def check_dimensions(dimensions: int) -> None:
    if dimensions not in _SHAPES:
        raise ValueError(f"dimensions must be 2 (images) or 3 (volumes), got {dimensions}")


def dimensions_of(network: Any) -> int | None:
    """D as a network says it, by `dimensions` or `config.dimensions`; None: it says neither.

    Example:
        >>> from diffreg.models import build_model, dimensions_of
        >>> dimensions_of(build_model("sn", dimensions=3))
        3
    """
    of = network if hasattr(network, "dimensions") else getattr(network, "config", None)
    dimensions = getattr(of, "dimensions", None)
    return dimensions if isinstance(dimensions, int) and dimensions in (2, 3) else None


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


def applied(network: Callable[..., Any], moving: Tensor, fixed: Tensor) -> Any:
    """What a network of whatever origin gives of a pair.

    Raises:
        ValueError: its layers failed, and are of volumes where it was given images, or the other
            way round; what else the network raises is left as it is.

    Example: `applied(build_model("lunet"), moving, fixed)`
    """
    try:
        return network(moving, fixed)
    except RuntimeError as error:
        given, wanted = fixed.ndim - 2, 5 - (fixed.ndim - 2)
        layers = list(network.modules()) if isinstance(network, nn.Module) else []
        if any(isinstance(layer, _LAYERS.get(given, ())) for layer in layers):
            raise
        other = [layer for layer in layers if isinstance(layer, _LAYERS.get(wanted, ()))]
        if not other:
            raise
        raise ValueError(
            f"the network has layers of {_KINDS[wanted]}s ({type(other[0]).__name__}), and was "
            f"given {_KINDS[given]}s, {list(fixed.shape)}: give it {_KINDS[wanted]}s; training "
            f"reads them where [model] says dimensions = {wanted}"
        ) from error
