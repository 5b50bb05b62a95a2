"""Volumes of a page as text: 8 bits a voxel, deflated, and shrunk where they would be too many.

What is deflated is the difference from what the neighbours before a voxel let expect, which is a
third smaller than the voxels themselves; the page adds it up again (browser/volumes.js).
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool3d, adaptive_max_pool3d

Pool = Callable[[torch.Tensor, Any], torch.Tensor]
OCTAVES = 3  # determinants are told apart between 2^-3 and 2^3


def packed(volume: np.ndarray) -> str:
    """A volume of 8-bit values.

    Args:
        volume: (X, Y, Z) uint8.

    Returns:
        Base64 of the deflated differences modulo 256, x fastest, from
        (2 (v_x + v_y + v_z) - (v_xy + v_xz + v_yz)) / 3, the mean of the planes through neighbours,
        clipped to 0..255 and rounded down; v_x is the voxel before along x, 0 outside.

    Example:
        >>> zlib.decompress(base64.b64decode(packed(np.full((2, 1, 1), 9, np.uint8)))).hex()
        '0903'
    """
    one = sum(_before(volume, axis) for axis in range(3))
    two = sum(_before(_before(volume, j), k) for j, k in ((0, 1), (0, 2), (1, 2)))
    return text_of(volume - (np.clip(2 * one - two, 0, 3 * 255) // 3).astype(np.uint8))


def _before(volume: np.ndarray, axis: int) -> np.ndarray:
    """Every voxel's neighbour before it along an axis, 0 outside."""
    shifted = np.zeros(volume.shape, np.int16)
    here, there = ([slice(None)] * 3 for _ in range(2))
    here[axis], there[axis] = slice(1, None), slice(None, -1)
    shifted[tuple(here)] = volume[tuple(there)]
    return shifted


def text_of(array: np.ndarray) -> str:
    """Base64 of the deflated bytes of an array, its first axis fastest."""
    return base64.b64encode(zlib.compress(array.tobytes(order="F"), 6)).decode("ascii")


def shrunk_shape(shape: Sequence[int], longest: int) -> tuple[int, ...]:
    """Every axis as it is, or `longest` where it is longer: thin stacks keep their slices."""
    return tuple(min(n, longest) for n in shape)


def mean_of_blocks(volume: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """(X, Y, Z) as means over the blocks that become voxels of the smaller shape, float32."""
    return _pooled(adaptive_avg_pool3d, volume, shape)


def largest_of_blocks(volume: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """As `mean_of_blocks`, the largest of each block, so that what sticks out is not lost."""
    return _pooled(adaptive_max_pool3d, volume, shape)


def middle_of_blocks(volume: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """As `mean_of_blocks`, the voxel in the middle of each block, for labels."""
    middles = (
        ((2 * np.arange(m) + 1) * n) // (2 * m) for n, m in zip(volume.shape, shape, strict=True)
    )
    return volume[np.ix_(*middles)]


def block_of(voxel: Sequence[int], full: Sequence[int], shape: Sequence[int]) -> list[int]:
    """The voxel of the smaller shape that a voxel of the full one went into."""
    return [i * m // n for i, n, m in zip(voxel, full, shape, strict=True)]


def determinant_bytes(cells: np.ndarray) -> np.ndarray:
    """Determinants on a logarithmic scale: 0 folds, 1 is 1/8 and less, 128 is 1, 255 is 8 and more.

    Example:
        >>> determinant_bytes(np.array([-0.5, 0.01, 1.0, 8.0, np.nan])).tolist()
        [0, 1, 128, 255, 0]
    """
    positive = np.where(cells > 0, cells, 1.0)
    octaves = np.clip(np.log2(positive), -OCTAVES, OCTAVES)
    levels = np.rint(128 + 127 * octaves / OCTAVES).astype(np.uint8)
    return np.where(cells > 0, levels, 0).astype(np.uint8)


def _pooled(pool: Pool, volume: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    if volume.shape == tuple(shape):
        return volume
    tensor = torch.from_numpy(np.ascontiguousarray(volume, np.float32))
    return pool(tensor[None], tuple(shape))[0].numpy()
