"""Folders of results: what they are called, and whether one holds what is another pair's.

metrics.json names its images relative to its folder, so that both can be moved together.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diffreg.data._npz import split_array
from diffreg.data.geometry import Image
from diffreg.data.images import ENDINGS, file_of
from diffreg.data.pairing import Pair, said_part
from diffreg.registration._json import read_json
from diffreg.system.files import require_folder, require_place

DISPLACEMENT, METRICS, REPORT = "displacement.nii.gz", "metrics.json", "report.html"
AFFINE, COMPOSITE = "affine.mat", "composite.h5"
INVERSE, INVERSE_COMPOSITE = "inverse_displacement.nii.gz", "inverse_composite.h5"
JACOBIAN, LOG_JACOBIAN = "jacobian.nii.gz", "log_jacobian.nii.gz"
WITH_AFFINE = "jacobian_with_affine.nii.gz"
MAPS = (JACOBIAN, LOG_JACOBIAN, WITH_AFFINE)
_LONGEST = 100  # bytes of an image's name in a folder's: two, a number and an ending make 255
_PAIRS = "[0-9][0-9][0-9][0-9]*_to_*/" + METRICS
# Names that ask for a file, as programs have it that write their result into one.
_FILES = (
    *ENDINGS,
    *(".csv", ".dcm", ".h5", ".html", ".json", ".mat", ".pt", ".tfm", ".toml", ".tsv", ".txt"),
)


def check_output_folder(out: str | Path) -> Path:
    """Refuse a folder for the results before any work is done; it may not exist, its parent must.

    Args:
        out: the folder.

    Returns:
        The folder.

    Raises:
        ValueError: it, or its parent where it does not exist, is no folder that can be written to;
            it does not exist and is named as a file; or a folder has the name of one of its files.

    Example:
        >>> from diffreg.registration.folders import check_output_folder
        >>> check_output_folder("/").name
        ''
    """
    out = Path(out)
    if out.exists():
        require_folder(out, "the output folder")
        _check_replaceable(out)
        return out
    if out.name.lower().endswith(_FILES):
        raise ValueError(
            f"{out} is named as a file, but the output is a folder, for {DISPLACEMENT}, {METRICS} "
            "and others: leave out the ending"
        )
    require_folder(out.absolute().parent, "the folder to make the output folder in,")
    return require_place(out, "the output folder")


def _check_replaceable(out: Path) -> None:
    named = (DISPLACEMENT, METRICS, REPORT, AFFINE, COMPOSITE, INVERSE, INVERSE_COMPOSITE, *MAPS)
    for name in (*named, "warped.nii.gz", "warped.png"):
        if (out / name).is_dir():
            raise ValueError(f"{out / name} is a folder; a file of that name is to be written")


def folder_name(number: int, pair: Pair) -> str:
    """What the folder of pair `number` is called: "0003_moving_to_fixed".

    Example:
        >>> from pathlib import Path
        >>> from diffreg.data.pairing import Pair, said_part
        >>> from diffreg.registration.folders import folder_name
        >>> folder_name(3, Pair(Path("a/es.nii.gz"), Path("a/ed.nii.gz"), moving_slice=2))
        '0003_es_to_ed_2'
    """
    moving, fixed = (_stem(path) for path in (pair.moving, pair.fixed))
    index = pair.moving_slice if pair.fixed_slice is None else pair.fixed_slice
    where = "" if index is None else f"_{index}"
    return f"{number:04d}_{moving}_to_{fixed}{where}"


def _stem(path: Path) -> str:
    file = file_of(path)
    name = split_array(path)[1] or file.name.removesuffix(".gz").rpartition(".")[0] or file.name
    name = "".join(c if c.isalnum() or c in "-._" else "-" for c in name)[:60]
    while len(os.fsencode(name)) > _LONGEST:
        name = name[:-1]
    return name


def images_of(moving: Image, fixed: Image, folder: str | Path) -> list[str]:
    """The files of a pair as metrics.json names them, relative to its folder; none of arrays.

    Args:
        moving, fixed: the images.
        folder: where metrics.json is; it may not exist yet.

    Example: `images_of(moving, fixed, "out")` may be ["../data/a.png", "../data/b.png"]
    """
    found = [place_from(image.path, folder) for image in (moving, fixed) if image.path]
    return found if len(found) == 2 else []


def place_from(path: str | Path, folder: str | Path) -> str:
    """Where a file lies as seen from a folder, wherever the command was given."""
    return os.path.relpath(_place(path), os.path.realpath(folder))


def check_same_pair(out: Path, moving: Image, fixed: Image) -> None:
    """Refuse a folder that holds the results of other images; those of the same are replaced.

    Args:
        out: the folder; it may not exist.
        moving, fixed: what is to be registered into it.

    Raises:
        ValueError: it holds another pair's results, or those of a manifest's pairs.

    Example: `check_same_pair(Path("out"), moving, fixed)`
    """
    if (out / "evaluation.json").exists() or _pairs_in(out):
        raise ValueError(f"{out} holds the results of a manifest's pairs: give another folder")
    if not (out / METRICS).exists():
        return
    found = _read(out / METRICS)
    images = images_of(moving, fixed, out)
    parts = [(moving.slice_index, moving.time), (fixed.slice_index, fixed.time)]
    if found.get("images") != images or _parts(found) != parts:
        raise ValueError(f"{out} holds {_said(found)}: give another folder, or remove it")


def check_no_pair(out: Path) -> None:
    """Refuse a folder that holds the results of one pair, where those of a manifest are to be.

    Args:
        out: the folder; it may not exist.

    Raises:
        ValueError: it does.

    Example: `check_no_pair(Path("out"))`
    """
    if (out / METRICS).exists():
        raise ValueError(f"{out} holds {_said(_read(out / METRICS))}: give another folder")


def check_some_listed(out: Path, pairs: Iterable[Pair]) -> None:
    """Refuse a folder that holds the results of another manifest: of none of these pairs.

    Rows may come and go between two runs of one manifest; of another one all pairs are others.

    Args:
        out: the folder.
        pairs: those that are to be registered into it.

    Raises:
        ValueError: it holds pairs, and all of them are others.

    Example: `check_some_listed(Path("out"), read_manifest("pairs.csv"))`
    """
    listed = {(_place(pair.moving), _place(pair.fixed)) for pair in pairs}
    others = []
    for folder in (file.parent for file in _pairs_in(out)):
        found = _read(folder / METRICS)
        images = found.get("images")
        if not isinstance(images, list) or not all(isinstance(name, str) for name in images):
            continue
        real = os.path.realpath(folder)
        if tuple(_place(os.path.join(real, name)) for name in images) in listed:
            return
        others.append(found)
    if others:
        raise ValueError(
            f"{out} holds {_said(others[0])}, which is none of these pairs: give another folder"
        )


_ENDS = ("moving", "fixed")


def _pairs_in(out: Path) -> list[Path]:
    """metrics.json of each pair of a manifest whose results are there."""
    return sorted(out.glob(_PAIRS))


def _place(path: str | Path) -> str:
    """An absolute path; links to folders are followed, one to the file itself is not."""
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder or "."), name)


def _read(file: Path) -> dict[str, Any]:
    """metrics.json, empty where it is none of ours."""
    try:
        return read_json(file)
    except (ValueError, OSError):
        return {}


def _parts(found: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Slice and time point of the moving and of the fixed image."""
    return [(found.get(f"{end}_slice"), found.get(f"{end}_time")) for end in _ENDS]


def _said(found: dict[str, Any]) -> str:
    """Whose results they are, in words."""
    names = [found.get(end) for end in _ENDS]
    if not all(isinstance(name, str) for name in names):
        return f"a {METRICS} of something else"
    ends = [f"{name}{said_part(*part)}" for name, part in zip(names, _parts(found), strict=True)]
    return f"the results of {' to '.join(ends)}"
