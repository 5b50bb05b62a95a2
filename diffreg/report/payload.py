"""What the viewer of a volume is given: its volumes as text, and where they lie."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffreg.report.determinants import FOLDED, determinant_colours, determinant_limit
from diffreg.report.packed import (
    OCTAVES,
    block_of,
    determinant_bytes,
    largest_of_blocks,
    mean_of_blocks,
    middle_of_blocks,
    packed,
    shrunk_shape,
    text_of,
)
from diffreg.report.panels import OUTLINED, PairView, level
from diffreg.report.volumes import Upright, point_of_view, worst_cell
from diffreg.system.extras import require

LONGEST, SHORTEST = 160, 48  # voxels to a side at most; as many as there is room for
MESH_NODES = 48  # of the displacement, along the longest side

Shape = tuple[int, ...]


def payload(volume: Upright, most_bytes: int) -> dict[str, Any]:
    """Volumes and geometry, as the viewer takes them.

    Args:
        volume: the pair.
        most_bytes: of the volumes' text; where they need more they are drawn coarser.

    Returns:
        What JSON can hold: channels, name -> text; shape, that they are drawn with, and the rest.

    Example: `payload(upright_volume(view), 5_000_000)["shape"]`
    """
    pair, cells, _ = volume
    mesh, nodes, scale = _mesh(pair)
    always = {"mesh": mesh, "palette": text_of(_palette(cells))}
    outlines, labels = _outlines(pair)
    longest, too_many = LONGEST, np.inf
    while too_many > 1:
        shape = shrunk_shape(pair.fixed.shape, longest)
        channels = always | _images(pair, cells, shape)
        channels |= {n: text_of(middle_of_blocks(o, shape)) for n, o in outlines.items()}
        too_many = sum(map(len, channels.values())) / most_bytes if longest > SHORTEST else 1
        longest = max(SHORTEST, min(longest - 8, int(longest / too_many ** (1 / 3))))
    share = np.array(shape) / pair.fixed.shape
    places = [((at + 0.5) * s - 0.5).tolist() for at, s in zip(nodes, share, strict=True)]
    return {
        "channels": channels,
        "labels": labels,
        "nodes": places,
        "meshScale": (scale * share).tolist(),
        "octaves": OCTAVES,
    } | _geometry(volume, shape)


def _geometry(volume: Upright, shape: Shape) -> dict[str, Any]:
    """Where the drawn voxels lie, the point that is looked at first, and the worst cell."""
    pair, cells, turn = volume
    full = pair.fixed.shape
    share = np.array(shape) / full
    worst = worst_cell(cells)
    return {
        "shape": shape,
        "full": full,
        "spacing": (np.array(pair.spacing) / share).tolist(),
        "half": (0.5 * share).tolist(),
        "stored": turn.stored(full).astype(int).tolist(),
        "world": None if pair.affine is None else np.asarray(pair.affine).tolist(),
        "start": block_of(point_of_view(volume), full, shape),
        "worst": None if worst is None else block_of(worst, full, shape),
        "folded": int((~(cells > 0)).sum()),
    }


def _images(volume: PairView, cells: np.ndarray, shape: Shape) -> dict[str, str]:
    """Images within their windows, and of each block of cells the smallest determinant."""
    limits, fixed_limits = volume.windows
    windows = {"moving": limits, "warped": limits, "fixed": fixed_limits}
    levels = {
        name: level(mean_of_blocks(getattr(volume, name), shape), window)
        for name, window in windows.items()
    }
    texts = {name: packed(np.rint(255 * image).astype(np.uint8)) for name, image in levels.items()}
    if not cells.size:
        cells = np.ones(volume.fixed.shape)
    missing = [(0, n - m) for n, m in zip(volume.fixed.shape, cells.shape, strict=True)]
    smallest = 255 - largest_of_blocks(
        255 - np.pad(determinant_bytes(cells), missing, "edge"), shape
    )
    return texts | {"determinant": packed(smallest.astype(np.uint8))}


def _outlines(volume: PairView) -> tuple[dict[str, np.ndarray], list[int] | None]:
    """Mask and labels as 8-bit numbers, and the labels that these stand for.

    Of more than 256 labels two may share a number; then what they are is not said.
    """
    given = {name: getattr(volume, name) for name in OUTLINED}
    found = {name: array for name, array in given.items() if array is not None}
    mask = {"mask": (found.pop("mask") > 0).astype(np.uint8)} if "mask" in found else {}
    if not found:
        return mask, None
    names = np.unique(np.concatenate([np.unique(labels) for labels in found.values()]))
    numbered = {n: np.searchsorted(names, labels).astype(np.uint8) for n, labels in found.items()}
    return mask | numbered, [int(n) for n in names] if len(names) <= 256 else None


def _mesh(volume: PairView) -> tuple[str, list[np.ndarray], np.ndarray]:
    """The displacement at nodes about as far apart along all axes, 8 bits a component.

    Returns:
        Text of (n_x, n_y, n_z, 3) int8; the nodes of each axis, voxels; voxels of 1, each axis.
    """
    lengths = [n * h for n, h in zip(volume.fixed.shape, volume.spacing, strict=True)]
    nodes = []
    for n, length in zip(volume.fixed.shape, lengths, strict=True):
        count = min(n, max(2, round(MESH_NODES * length / max(lengths))))
        nodes.append(np.rint(np.linspace(0, n - 1, count)).astype(int))
    u = np.stack([component[np.ix_(*nodes)] for component in volume.displacement], -1).astype(
        np.float64
    )
    u = np.nan_to_num(u, nan=0.0, posinf=0.0, neginf=0.0)
    scale = np.abs(u).reshape(-1, 3).max(0) / 127
    steps = np.divide(u, scale, out=np.zeros_like(u), where=scale > 0)
    return text_of(np.rint(steps).astype(np.int8)), nodes, scale


def _palette(cells: np.ndarray) -> np.ndarray:
    """(3, 256) uint8, the colour of each number of `determinant_bytes`."""
    colors = require("matplotlib.colors", "the figures")
    limit = determinant_limit(cells)
    sizes = 2.0 ** ((np.arange(256) - 128) * OCTAVES / 127)
    colours = determinant_colours()(colors.LogNorm(1 / limit, limit)(sizes))[:, :3]
    colours[0] = colors.to_rgb(FOLDED)
    return np.rint(255 * colours.T).astype(np.uint8)
