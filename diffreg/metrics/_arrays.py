"""Images and displacements of any origin as checked float64 arrays."""

from __future__ import annotations

import numpy as np
import torch

Array = torch.Tensor | np.ndarray


def voxels(images: dict[str, Array], mask: Array | None) -> list[np.ndarray]:
    """The images and the mask's weights as flat float64 arrays, checked against the first image."""
    arrays = {name: single(name, image) for name, image in images.items()}
    first, shape = next((name, array.shape) for name, array in arrays.items())
    weight = np.ones(shape) if mask is None else single("mask", mask)
    for name, array in {**arrays, "mask": weight}.items():
        if array.shape != shape:
            raise ValueError(
                f"{name} must have the shape of {first}, {list(shape)}, got {list(array.shape)}"
            )
    check_weights(weight)
    inside = weight > 0  # what lies outside, nan included, has no say
    return [*(array[inside] for array in arrays.values()), weight[inside]]


def check_weights(weight: np.ndarray) -> None:
    """Raises unless a mask's weights are finite, >= 0, and not all 0."""
    if not (np.isfinite(weight).all() and (weight >= 0).all()):
        raise ValueError("mask must be finite and nowhere negative")
    if not weight.any():
        raise ValueError("mask must have a voxel inside, got none")


def single(name: str, image: Array) -> np.ndarray:
    """One image or volume as float64 (*S), without the leading (1, 1)."""
    array = torch.as_tensor(image).detach().to("cpu", torch.float64).numpy()
    if array.ndim >= 4 and array.shape[:2] == (1, 1):
        array = array[0, 0]
    if not 1 <= array.ndim <= 3:
        raise ValueError(f"{name} must be one image, (*S) or (1, 1, *S), got {list(array.shape)}")
    if array.size == 0:
        raise ValueError(f"{name} must not be empty, got {list(array.shape)}")
    return array


def one_displacement(displacement: Array) -> torch.Tensor:
    """One displacement as float64 (1, D, *S) on the CPU.

    Raises:
        ValueError: it is not one displacement.
    """
    u = torch.as_tensor(displacement).detach().to("cpu", torch.float64)
    shape = list(u.shape)
    if u.ndim >= 3 and u.shape[0] == u.ndim - 1:
        u = u[None]
    elif not (u.ndim >= 4 and u.shape[0] == 1 and u.shape[1] == u.ndim - 2):
        raise ValueError(f"displacement must be (D, *S) or (1, D, *S), got {shape}")
    return u.contiguous()
