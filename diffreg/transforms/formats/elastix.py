"""elastix's parameter files: y = A (x - c) + c + t, LPS mm; chains, the initial one first."""

from __future__ import annotations

import re
import warnings
from os.path import isfile
from pathlib import Path

import numpy as np

from diffreg.data.grid import LPS
from diffreg.system.files import FileWarning
from diffreg.transforms.formats.adapter import (
    Adapter,
    Places,
    numbers_of,
    one_affine,
    text_of,
    write_text,
)
from diffreg.transforms.formats.itk_linear import count_of, linear_of
from diffreg.transforms.values import Affine, Transform, compose

_LARGEST = 2**28  # bytes: that of a spline is read, and refused by its name
_LINE = re.compile(r"^\s*\(\s*(\w+)\s+(.*?)\s*\)\s*(?://.*)?$", re.MULTILINE)
# The second name is that of elastix 5, which takes it where a file has both.
_INITIAL = ("InitialTransformParametersFileName", "InitialTransformParameterFileName")
_NONE = "NoInitialTransform"
_LONGEST = 32  # of a chain
# The names of ITK for what elastix has, {n} axes.
_KINDS = {
    "AffineTransform": "AffineTransform",
    "EulerTransform": "Euler{n}DTransform",
    "SimilarityTransform": "Similarity{n}DTransform",
    "TranslationTransform": "TranslationTransform",
}


def _read(path: Path, places: Places) -> Transform:
    parts: list[Affine] = []
    file: Path | None = path
    while file is not None:
        if len(parts) == _LONGEST:
            raise ValueError(f"{path}: over {_LONGEST} initial transforms, or a circle")
        values = dict(_LINE.findall(text_of(file, _LARGEST)))
        parts.insert(0, _affine(file, values))
        file = _initial(file, values)
    return parts[0] if len(parts) == 1 else compose(parts)


def _affine(path: Path, values: dict[str, str]) -> Affine:
    kind = _word(values.get("Transform", ""))
    if not kind:
        raise ValueError(
            f"{path} has no Transform, as files of elastix have it; another tool's initial "
            "transform is chained by diffreg compose -t"
        )
    if kind == "File":
        name = _word(values.get("TransformFileName", "another file"))
        raise ValueError(f"{path} holds nothing but the name of {name[:80]!r}: give that file")
    if kind not in _KINDS:
        raise ValueError(
            f"{path} holds {kind[:80]!r} of elastix, and of these "
            f"{', '.join(_KINDS)} are read: transformix -def all writes a field (deformationField)"
        )
    if _word(values.get("UseBinaryFormatForTransformationParameters", "")) == "true":
        raise ValueError(f"{path} keeps its parameters in another file, in binary: write them here")
    if _word(values.get("UseDirectionCosines", "true")) != "true":
        raise ValueError(f"{path} ignores the directions of images (UseDirectionCosines is false)")
    itk = "ITKTransformParameters" in values  # as ITK stores them; elastix 5 takes them first
    key = "ITKTransformParameters" if itk else "TransformParameters"
    numbers = numbers_of(path, values.get(key, ""), key)
    flat = numbers.size == count_of(_KINDS[kind].format(n=2), 2)
    word = _word(values.get("FixedImageDimension", "2" if flat else "3"))
    if word not in ("2", "3"):
        raise ValueError(f"{path} is between images of {word[:20]} axes; 2 or 3 are needed")
    fixed = np.zeros(0)
    if itk:
        key = "ITKTransformFixedParameters"
        fixed = numbers_of(path, values.get(key, ""), key)
    elif kind != "TranslationTransform":
        if "CenterOfRotationPoint" not in values:
            raise ValueError(f"{path} has no CenterOfRotationPoint")
        zyx = _word(values.get("ComputeZYX", "false")) == "true"
        point = numbers_of(path, values["CenterOfRotationPoint"], "CenterOfRotationPoint")
        fixed = np.array([*point, float(zyx)]) if kind == "EulerTransform" else point
    found = linear_of(path, _KINDS[kind].format(n=word), int(word), numbers, fixed)
    assert found is not None  # all of _KINDS are among ITK's
    return found


def _initial(path: Path, values: dict[str, str]) -> Path | None:
    """The file of the transform that comes before; where it was, or beside this one."""
    name = next((_word(values[key]) for key in reversed(_INITIAL) if key in values), _NONE)
    if name in (_NONE, ""):
        return None
    if _word(values.get("HowToCombineTransforms", "Compose")) != "Compose":
        raise ValueError(f"{path} is added to an initial transform; Compose is needed")
    there, beside = path.parent / name, path.parent / Path(name).name
    if isfile(there):  # no error for a name that is none
        return there
    if not isfile(beside):
        raise FileNotFoundError(f"{path}: its initial transform {name[:80]!r} is not there")
    message = f"{path}: its initial transform {name} is not there; {beside} is taken"
    warnings.warn(message, FileWarning, stacklevel=2)
    return beside


def _word(value: str) -> str:
    return value.strip().strip('"')


def _write(path: Path, transform: Transform, places: Places) -> None:
    affine = one_affine(path, transform, "a parameter file of elastix, as it is written here,")
    grid = places.of_fixed(path, "the file says on which grid transformix resamples").grid
    n = 2 if affine.is_flat else 3
    kept = [*range(n), 3]
    itk, place = LPS @ affine.matrix @ LPS, LPS @ grid.in_space
    itk, place = itk[np.ix_(kept, kept)], place[np.ix_(kept, kept)]
    spacing = np.linalg.norm(place[:n, :n], axis=0)
    values = {
        "Transform": '"AffineTransform"',
        "NumberOfParameters": n * (n + 1),
        "TransformParameters": _words([*itk[:n, :n].ravel(), *itk[:n, n]]),
        _INITIAL[0]: f'"{_NONE}"',
        _INITIAL[1]: f'"{_NONE}"',
        "HowToCombineTransforms": '"Compose"',
        "FixedImageDimension": n,
        "MovingImageDimension": n,
        "FixedInternalImagePixelType": '"float"',
        "MovingInternalImagePixelType": '"float"',
        "Size": " ".join(map(str, (*grid.size, 1)[:n])),
        "Index": " ".join("0" * n),
        "Spacing": _words(spacing),
        "Origin": _words(place[:n, n]),
        "Direction": _words((place[:n, :n] / spacing).T.ravel()),
        "UseDirectionCosines": '"true"',
        "CenterOfRotationPoint": " ".join("0" * n),
        "ResampleInterpolator": '"FinalLinearInterpolator"',
        "Resampler": '"DefaultResampler"',
        "DefaultPixelValue": 0,
        "ResultImageFormat": '"nii.gz"',
        "ResultImagePixelType": '"float"',
        "CompressResultImage": '"true"',
    }
    write_text(path, "".join(f"({key} {value})\n" for key, value in values.items()))


def _words(numbers: np.ndarray | list) -> str:
    return " ".join(f"{value:.17g}" for value in numbers)


ELASTIX = Adapter(
    "elastix: affine, Euler, similarity, translation, with initial transforms; to write it, the "
    "fixed image",
    "fixed to moving, LPS mm",
    _read,
    _write,
    (".txt",),
)
