"""Affine files as ITK and ANTs read them: a .mat of MATLAB level 4, y = M (x - c) + c + t, LPS mm.

    T = F [M, t + c - M c] F      F = diag(-1, -1, 1, 1), T in RAS mm, from fixed to moving

Between 2-D files the map is one of their plane.
"""

from __future__ import annotations

import io
import struct
import sys
from pathlib import Path

import numpy as np

from diffreg.data.grid import LPS
from diffreg.system.atomic import replacing
from diffreg.system.extras import require

_LARGEST = 2**16  # bytes; such a file has some 200


def write_affine(path: str | Path, world: np.ndarray, is_flat: bool = False) -> None:
    """Write a map of the world so that ITK resamples with it as diffreg does.

    Args:
        path: .mat; the file appears whole or not at all.
        world: (4, 4), RAS mm, from the fixed image's space to the moving one's.
        is_flat: for 2-D files, of which ITK knows the x-y plane alone.

    Raises:
        ValueError: the name ends in something else.

    Source: itk::MatlabTransformIO; ANTs' 0GenericAffine.mat is such a file.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from diffreg.data.affine import read_affine, write_affine
        >>> world = np.eye(4)
        >>> world[:3, 3] = 1, 2, 3
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_affine(folder + "/affine.mat", world)
        ...     read_affine(folder + "/affine.mat")[:3, 3].tolist()
        [1.0, 2.0, 3.0]
    """
    path = Path(path)
    _check_ending(path)
    dimensions = 2 if is_flat else 3
    kept = [*range(dimensions), 3]
    itk = (LPS @ world @ LPS)[np.ix_(kept, kept)]
    numbers = np.concatenate([itk[:-1, :-1].ravel(), itk[:-1, -1]])[:, None]
    name = f"AffineTransform_double_{dimensions}_{dimensions}"
    content = {name: numbers, "fixed": np.zeros((dimensions, 1))}
    with replacing(path) as temporary:
        temporary.write_bytes(b"".join(level_4(*entry) for entry in content.items()))


def level_4(name: str, column: np.ndarray) -> bytes:
    """A column (K, 1) of doubles in a .mat file; to load SciPy takes longer than to write it."""
    of_doubles = 0 if sys.byteorder == "little" else 1000
    text = name.encode() + b"\0"
    return struct.pack("=5i", of_doubles, len(column), 1, 0, len(text)) + text + column.tobytes()


def read_affine(path: str | Path) -> np.ndarray:
    """Read an affine or rigid matrix that ITK, ANTs or diffreg wrote.

    Args:
        path: .mat.

    Returns:
        (4, 4), RAS mm, from the fixed image's space to the moving one's.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no affine map, or one that is singular.

    Example: see write_affine.
    """
    path = Path(path)
    _check_ending(path)
    content = read_mat(path, _LARGEST)
    for dimensions in (2, 3):
        for kind in ("AffineTransform", "MatrixOffsetTransformBase"):
            found = content.get(f"{kind}_double_{dimensions}_{dimensions}")
            if found is not None:
                return _world(path, found, content.get("fixed"), dimensions)
    names = ", ".join(content) or "nothing"
    raise ValueError(f"{path} holds no affine map of ITK: it holds {names[:80]}")


def read_mat(path: Path, largest: int) -> dict[str, np.ndarray]:
    """The arrays of a .mat file of at most so many bytes, by their names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is larger, or not readable.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if not path.is_file() or path.stat().st_size > largest:
        raise ValueError(f"{path} is no affine file: it is no file of at most {largest} bytes")
    try:
        content = require("scipy.io", "affine files").loadmat(io.BytesIO(path.read_bytes()))
    except Exception as error:  # whatever a damaged file makes scipy raise
        message = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is not a readable .mat file: {message}") from None
    return {name: values for name, values in content.items() if not name.startswith("__")}


def _world(path: Path, numbers: np.ndarray, centre: np.ndarray | None, n: int) -> np.ndarray:
    """(4, 4) of ITK's numbers and centre."""
    centre = np.zeros(n) if centre is None else np.asarray(centre, dtype=np.float64).ravel()
    numbers = np.asarray(numbers, dtype=np.float64).ravel()
    if numbers.size != n * (n + 1) or centre.size != n:
        raise ValueError(f"{path} holds {numbers.size} numbers for a map of {n} axes")
    matrix, shift = numbers[: n * n].reshape(n, n), numbers[n * n :]
    if not np.isfinite([*numbers, *centre]).all() or not abs(np.linalg.det(matrix)) > 1e-9:
        raise ValueError(f"{path} holds a map that is singular, or numbers that are not finite")
    itk = np.eye(4)
    itk[:n, :n], itk[:n, 3] = matrix, shift + centre - matrix @ centre
    return LPS @ itk @ LPS


def _check_ending(path: Path) -> None:
    if path.suffix.lower() != ".mat":
        raise ValueError(f"{path}: the name of an affine file must end in .mat")
