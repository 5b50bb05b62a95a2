"""ITK's transforms in text (.tfm, .txt) and in Matlab's level 4 (.mat), as ANTs and Slicer have."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffreg.data.affine import level_4, read_mat
from diffreg.system.atomic import replacing
from diffreg.transforms.formats.adapter import (
    Adapter,
    Places,
    numbers_of,
    one_affine,
    text_of,
    write_text,
)
from diffreg.transforms.formats.itk import Stored, stored_of, transform_of
from diffreg.transforms.values import Transform

HEAD = "#Insight Transform File"
_LARGEST = 2**31  # bytes; a field may be in it
_KEYS = ("Transform", "Parameters", "FixedParameters")


def _read_text(path: Path, places: Places) -> Transform:
    found: list[dict[str, str]] = []
    for line in text_of(path, _LARGEST).splitlines():
        key, colon, value = (part.strip() for part in line.partition(":"))
        if line.lstrip().startswith("#") or not line.strip():
            continue
        if not colon or key not in _KEYS or (key != "Transform" and not found):
            raise ValueError(
                f"{path}: {line.strip()[:60]!r} stands where one of {', '.join(_KEYS)} is expected"
            )
        if key == "Transform":
            found.append({})
        found[-1][key] = value
    return transform_of(path, [_entry(path, entry) for entry in found])


def _entry(path: Path, entry: dict[str, str]) -> Stored:
    numbers, fixed = (numbers_of(path, entry.get(key, ""), key) for key in _KEYS[1:])
    return Stored(entry["Transform"], numbers, fixed)


def _write_text(path: Path, transform: Transform, places: Places) -> None:
    lines = [f"{HEAD} V1.0"]
    for index, (kind, numbers, fixed) in enumerate(stored_of(transform)):
        lines += [f"#Transform {index}", f"Transform: {kind}"]
        if numbers.size or fixed.size:  # a composite has none
            lines += [f"Parameters: {_words(numbers)}", f"FixedParameters: {_words(fixed)}"]
    write_text(path, "\n".join([*lines, ""]))


def _words(numbers: np.ndarray) -> str:
    return " ".join(f"{value:.17g}" for value in numbers.astype(np.float64).tolist())


def _read_mat(path: Path, places: Places) -> Transform:
    content = read_mat(path, _LARGEST)
    fixed = content.pop("fixed", np.zeros(0))
    if len(content) > 1:
        raise ValueError(f"{path} holds {len(content)} arrays; a .mat file holds one transform")
    stored = []
    for name, values in content.items():
        if values.dtype.kind not in "iuf" or fixed.dtype.kind not in "iuf":
            raise ValueError(f"{path} holds {name[:80]!r}, which is no array of numbers")
        stored = [Stored(name, values.astype(np.float64).ravel(), fixed.astype(np.float64).ravel())]
    return transform_of(path, stored)


def _write_mat(path: Path, transform: Transform, places: Places) -> None:
    affine = one_affine(path, transform, "a .mat file of ITK")
    ((kind, numbers, fixed),) = stored_of(affine)
    content = {kind: numbers[:, None], "fixed": fixed[:, None]}
    with replacing(path) as temporary:
        temporary.write_bytes(b"".join(level_4(*entry) for entry in content.items()))


TEXT = Adapter(
    "ITK, Slicer, SimpleITK: transforms in text, chains of any length",
    "fixed to moving, LPS mm",
    _read_text,
    _write_text,
    (".tfm", ".txt"),
)
MATLAB = Adapter(
    "ITK, ANTs' 0GenericAffine.mat: one affine map, Matlab's level 4",
    "fixed to moving, LPS mm",
    _read_mat,
    _write_mat,
    (".mat",),
)
