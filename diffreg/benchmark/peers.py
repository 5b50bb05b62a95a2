"""Other libraries on the same work, where they are installed.

A peer takes the operator's inputs and returns its value; the benchmark prints no time of one that
gives other results. Names are those of the tables.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from importlib.util import find_spec

import torch

Peer = Callable[..., torch.Tensor]


def warp_peers(interpolates: torch.Tensor) -> dict[str, Peer]:
    """For the device and axes of `interpolates`; those of numpy are of the CPU, forward alone."""
    found: dict[str, Peer] = {}
    flat = interpolates.ndim == 4  # kornia and OpenCV take no volumes
    if find_spec("monai"):
        found["MONAI"] = _monai_warp()
    if find_spec("voxelmorph"):
        found["VoxelMorph"] = _voxelmorph_warp
    if flat and find_spec("kornia"):
        found["kornia"] = _kornia_remap
    if interpolates.device.type == "cpu":
        if flat and find_spec("cv2") and interpolates.dtype == torch.float32:
            found["OpenCV"] = _opencv_remap
        if find_spec("scipy") and interpolates.dtype in (torch.float32, torch.float64):
            found["SciPy"] = _scipy_map_coordinates
    return found


FORWARD_ONLY = ("OpenCV", "SciPy")


def missing() -> list[str]:
    """Of the libraries that could be compared, those that are not installed."""
    names = {
        **{"monai": "MONAI", "voxelmorph": "VoxelMorph", "kornia": "kornia"},
        **{"cv2": "OpenCV", "scipy": "SciPy"},
    }
    return [label for module, label in names.items() if not find_spec(module)]


@functools.cache
def _monai_warp() -> Peer:
    from monai.networks.blocks import Warp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it uses grid_sample
        return Warp(mode="bilinear", padding_mode="border")


def _voxelmorph_warp(moving: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    from voxelmorph.nn.functional import spatial_transform

    return spatial_transform(moving, u, padding_mode="border")


@functools.cache
def _positions(
    size: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, ...]:
    axes = (torch.arange(n, dtype=dtype, device=device) for n in size)
    return torch.meshgrid(*axes, indexing="ij")


def _kornia_remap(moving: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    from kornia.geometry.transform import remap

    y, x = _positions(tuple(u.shape[2:]), u.dtype, u.device)
    return remap(moving, x + u[:, 1], y + u[:, 0], padding_mode="border", align_corners=True)


def _opencv_remap(moving: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    import cv2

    cv2.setNumThreads(torch.get_num_threads())
    y, x = _positions(tuple(u.shape[2:]), u.dtype, u.device)
    warped = torch.empty(*moving.shape[:2], *u.shape[2:])
    for n in range(len(moving)):
        points = (x + u[n, 1]).numpy(), (y + u[n, 0]).numpy()
        for c in range(moving.shape[1]):
            into = warped[n, c].numpy()
            border = cv2.BORDER_REPLICATE
            cv2.remap(moving[n, c].numpy(), *points, cv2.INTER_LINEAR, into, border)
    return warped


def _scipy_map_coordinates(moving: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    from scipy.ndimage import map_coordinates

    identity = torch.stack(_positions(tuple(u.shape[2:]), u.dtype, u.device))
    warped = torch.empty(*moving.shape[:2], *u.shape[2:], dtype=u.dtype)
    for n in range(len(moving)):
        points = (identity + u[n]).numpy()
        for c in range(moving.shape[1]):
            into = warped[n, c].numpy()
            map_coordinates(moving[n, c].numpy(), points, into, order=1, mode="nearest")
    return warped
