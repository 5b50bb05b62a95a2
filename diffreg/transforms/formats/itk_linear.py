"""ITK's linear transforms: y = M (x - c) + c + t in LPS mm; how M and t follow from parameters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from diffreg.data.grid import LPS
from diffreg.transforms.formats.adapter import affine_of
from diffreg.transforms.values import Affine

_LESS = 1e-10
# (M, t) of the parameters and the fixed ones, centre first.
_Linear = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def linear_of(
    path: Path, kind: str, n: int, numbers: np.ndarray, fixed: np.ndarray
) -> Affine | None:
    """The map of a linear transform of ITK.

    Args:
        path: the file, for messages.
        kind: the transform's name, such as "Euler3DTransform".
        n: axes, 2 or 3.
        numbers: its parameters.
        fixed: its fixed parameters.

    Returns:
        The map; None where ITK has no linear transform of that name.

    Raises:
        ValueError: another number of parameters, or a map that is singular.

    Source: the ComputeMatrix of each transform in ITK 5.4.
    """
    centred = kind in _CENTRED
    plain = kind.removeprefix("Centered") if centred else kind
    if (plain, n) not in _KINDS:
        return None
    size, linear = _KINDS[plain, n]
    size += n if centred else 0
    if numbers.size != size or fixed.size not in (0, n, n + 1):
        raise ValueError(
            f"{path}: {kind} has {numbers.size} parameters and {fixed.size} fixed ones; {size} and "
            f"{n} are needed"
        )
    centre = fixed[:n] if fixed.size else np.zeros(n)
    if centred:
        centre, numbers = numbers[-2 * n : -n], np.delete(numbers, slice(-2 * n, -n))
    matrix, shift = linear(numbers, fixed)
    itk = np.eye(4)
    itk[:n, :n], itk[:n, 3] = matrix, shift + centre - matrix @ centre
    return affine_of(path, LPS @ itk @ LPS, is_flat=n == 2)


def count_of(kind: str, n: int) -> int:
    """How many parameters a linear transform of ITK between n axes has."""
    return _KINDS[kind, n][0]


def rotation(versor: np.ndarray) -> np.ndarray:
    """(3, 3) of a unit quaternion's x, y and z; made 1 where it is longer, as in ITK."""
    length = float(np.linalg.norm(versor))
    vector = versor / (length + _LESS * length) if length >= 1 - _LESS else versor
    w = np.sqrt(max(0.0, 1 - float(vector @ vector)))
    return _of_quaternion(np.array([*vector, w]))


def _of_quaternion(q: np.ndarray) -> np.ndarray:
    x, y, z = q[:3]
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return (q[3] ** 2 - q[:3] @ q[:3]) * np.eye(3) + 2 * np.outer(q[:3], q[:3]) + 2 * q[3] * cross


def _turn(axis: int, angle: float) -> np.ndarray:
    """A rotation about one of three axes."""
    c, s = np.cos(angle), np.sin(angle)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[[i, j, i, j], [i, j, j, i]] = c, c, -s, s
    return matrix


def euler(angles: np.ndarray, zyx: bool) -> np.ndarray:
    """(3, 3) Rz Rx Ry, or Rz Ry Rx, of three angles."""
    x, y, z = (_turn(axis, angle) for axis, angle in enumerate(angles))
    return z @ y @ x if zyx else z @ x @ y


def _matrix(n: int) -> _Linear:
    return lambda p, _: (p[: n * n].reshape(n, n), p[n * n :])


def _euler_3d(p: np.ndarray, fixed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return euler(p[:3], bool(fixed.size > 3 and fixed[3])), p[3:]


def _euler_2d(p: np.ndarray, fixed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return _turn(2, p[0])[:2, :2], p[1:]


def _similarity_2d(p: np.ndarray, fixed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return p[0] * _turn(2, p[1])[:2, :2], p[2:]


def _versor(p: np.ndarray, fixed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return rotation(p[:3]), p[3:] if p.size > 3 else np.zeros(3)


def _similarity_3d(p: np.ndarray, fixed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return p[6] * rotation(p[:3]), p[3:6]


def _quaternion(p: np.ndarray, fixed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return _of_quaternion(p[:4]), p[4:]


def _scale_skew(p: np.ndarray, fixed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales less 1 and skews are added to the rotation, entry by entry."""
    added = np.diag(p[6:9] - 1)
    if p.size > 9:
        added[[0, 0, 1, 1, 2, 2], [1, 2, 0, 2, 0, 1]] = p[9:]
    return rotation(p[:3]) + added, p[3:6]


def _composed_scale_skew(p: np.ndarray, fixed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Skews, then scales, then the rotation."""
    skew = np.eye(3)
    skew[[0, 0, 1], [1, 2, 2]] = p[9:]
    return rotation(p[:3]) @ np.diag(p[6:9]) @ skew, p[3:6]


def _translation(p: np.ndarray, fixed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.eye(len(p)), p


def _scale(p: np.ndarray, fixed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.diag(p), np.zeros(len(p))


def _scale_logarithmic(p: np.ndarray, fixed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return _scale(np.exp(p), fixed)


def _identity(n: int) -> _Linear:
    return lambda p, _: (np.eye(n), np.zeros(n))


# Those that keep their centre among the parameters, before the translation.
_CENTRED = (
    "CenteredAffineTransform",
    "CenteredEuler3DTransform",
    "CenteredRigid2DTransform",
    "CenteredSimilarity2DTransform",
)
# (name, axes): number of parameters, and what they mean.
_KINDS: dict[tuple[str, int], tuple[int, _Linear]] = {
    ("ComposeScaleSkewVersor3DTransform", 3): (12, _composed_scale_skew),
    ("Euler2DTransform", 2): (3, _euler_2d),
    ("Euler3DTransform", 3): (6, _euler_3d),
    ("FixedCenterOfRotationAffineTransform", 3): (12, _matrix(3)),
    ("QuaternionRigidTransform", 3): (7, _quaternion),
    ("Rigid2DTransform", 2): (3, _euler_2d),
    ("Rigid3DTransform", 3): (12, _matrix(3)),
    ("ScalableAffineTransform", 3): (12, _matrix(3)),
    ("ScaleLogarithmicTransform", 3): (3, _scale_logarithmic),
    ("ScaleSkewVersor3DTransform", 3): (15, _scale_skew),
    ("ScaleVersor3DTransform", 3): (9, _scale_skew),
    ("Similarity2DTransform", 2): (4, _similarity_2d),
    ("Similarity3DTransform", 3): (7, _similarity_3d),
    ("VersorRigid3DTransform", 3): (6, _versor),
    ("VersorTransform", 3): (3, _versor),
}
for _n in (2, 3):
    _KINDS["AffineTransform", _n] = _n * _n + _n, _matrix(_n)
    _KINDS["MatrixOffsetTransformBase", _n] = _n * _n + _n, _matrix(_n)
    _KINDS["TranslationTransform", _n] = _n, _translation
    _KINDS["ScaleTransform", _n] = _n, _scale
    _KINDS["IdentityTransform", _n] = 0, _identity(_n)
