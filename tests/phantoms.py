"""Volumes that look different from every side, and how a file may store them."""

import itertools

import numpy as np

from diffreg.report.panels import PairView

# Which axis of x, y, z each array axis runs along, and which of them run backwards.
STORAGES = [
    (axes, backwards)
    for axes in itertools.permutations(range(3))
    for backwards in itertools.product((False, True), repeat=3)
]
SHAPE, SPACING = (9, 12, 7), (2.0, 1.5, 4.0)


def rotation(degrees: float) -> np.ndarray:
    """(3, 3), about an axis that is none of the world's."""
    axis = np.array([1.0, 2.0, -1.5]) / np.linalg.norm([1.0, 2.0, -1.5])
    cross = np.cross(np.eye(3), -axis)
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def stored(volume: np.ndarray, axes, backwards) -> np.ndarray:
    """The array of a volume (X, Y, Z, ...), as a file has it."""
    for axis in range(3):
        if backwards[axis]:
            volume = volume[(slice(None),) * axis + (slice(None, None, -1),)]
    return volume.transpose(*axes, *range(3, volume.ndim))


def stored_affine(shape, spacing, axes, backwards, turn=None) -> np.ndarray:
    """(4, 4), of that array; voxel 0 of the volume lies at (10, -20, 30) mm."""
    edges = (np.eye(3) if turn is None else turn) * np.array(spacing)
    affine = np.eye(4)
    affine[:3, 3] = (10, -20, 30)
    for column, axis in enumerate(axes):
        affine[:3, column] = -edges[:, axis] if backwards[axis] else edges[:, axis]
    for axis in range(3):
        if backwards[axis]:
            affine[:3, 3] += (shape[axis] - 1) * edges[:, axis]
    return affine


def stored_pair(
    axes=(0, 1, 2), backwards=(False,) * 3, turn=None, shape=SHAPE, fold=None, **more
) -> PairView:
    """Noise of 8 bits, a displacement in x, y, z of the patient, and a cell that folds if asked."""
    rng = np.random.default_rng(0)
    images = {
        name: rng.integers(0, 256, shape).astype(np.float32)
        for name in ("moving", "fixed", "warped")
    }
    u = 0.1 * rng.standard_normal((*shape, 3))
    if fold is not None:
        u[(*fold, 0)] += 3.0  # past its neighbour
    u = stored(u, axes, backwards)
    signs = np.where([backwards[axis] for axis in axes], -1.0, 1.0)
    return PairView(
        "phantom",
        **{name: stored(image, axes, backwards) for name, image in images.items()},
        displacement=np.stack(
            [sign * u[..., axis] for sign, axis in zip(signs, axes, strict=True)]
        ),
        spacing=[SPACING[axis] for axis in axes],
        affine=stored_affine(shape, SPACING, axes, backwards, turn),
        limits=((0, 255), (0, 255)),
        **{name: stored(array, axes, backwards) for name, array in more.items()},
    )


def picture(volume: np.ndarray, plane: str, index: int) -> np.ndarray:
    """What is seen of a volume in x, y, z, written out."""
    x, y, z = volume.shape
    if plane == "Axial":
        return np.array([[volume[c, y - 1 - r, index] for c in range(x)] for r in range(y)])
    if plane == "Coronal":
        return np.array([[volume[c, index, z - 1 - r] for c in range(x)] for r in range(z)])
    return np.array([[volume[index, c, z - 1 - r] for c in range(y)] for r in range(z)])
