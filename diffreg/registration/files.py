"""The files that a registration leaves: warped image, displacement, metrics and report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from diffreg.data.affine import read_affine, write_affine
from diffreg.data.geometry import Image, voxel_map
from diffreg.data.images import write_image
from diffreg.data.normalization import Normalization
from diffreg.data.prepare import PairImages
from diffreg.data.transforms import read_displacement, write_displacement
from diffreg.fields import FoldCertificate, fold_certificate
from diffreg.metrics import folding
from diffreg.registration._json import read_json, write_json
from diffreg.registration.determinants import check_cells, write_determinants
from diffreg.registration.folders import (
    AFFINE,
    COMPOSITE,
    DISPLACEMENT,
    INVERSE,
    INVERSE_COMPOSITE,
    MAPS,
    METRICS,
    REPORT,
    check_output_folder,
    images_of,
)
from diffreg.registration.judgement import judged
from diffreg.registration.outlines import fallen, outlines_of
from diffreg.registration.pair_page import write_pair_page
from diffreg.registration.result import Registration, registration_of
from diffreg.registration.transforms import whole_map, write_composites
from diffreg.system.atomic import staged
from diffreg.transforms import Chain

# What metrics.json says of a volume's certificate, beside its words and the place.
_OF_VOLUMES = (
    *("smallest_determinant", "determinant_bound", "cells", "folded_cells", "undecided_cells"),
    *("folded_inside", "folded_volume"),
)


def write_registration(
    result: Registration,
    out: str | Path,
    report: bool = True,
    more: dict[str, Any] | None = None,
    credits: Sequence[str] = (),
    jacobian: bool = False,
    labels: tuple[Image, Image] | None = None,
    composites: bool = True,
) -> Registration:
    """Write the warped image, the transforms, metrics.json and report.html.

    Transforms are displacement.nii.gz and affine.mat, composite.h5, which is both, and of the way
    back inverse_displacement.nii.gz, on the fixed grid, and inverse_composite.h5, both ITK's. A
    point x of the fixed image lies at T(x + d(x)) in the moving one, d the displacement and T the
    affine map: antsApplyTransforms takes `-t displacement.nii.gz -t affine.mat`. All files appear,
    each whole, or none. The determinants are those of the displacement as it is in its file.

    Args:
        result: what `register` returned.
        out: the folder; it is made where it does not exist.
        report: whether to write report.html.
        more: entries that metrics.json gets beside the metrics.
        credits: lines at the foot of the report.
        jacobian: whether to write jacobian.nii.gz and log_jacobian.nii.gz, J of the displacement,
            and jacobian_with_affine.nii.gz, J of the whole map.
        labels: of the moving and the fixed image, which the page outlines and the metrics compare.
        composites: whether to write composite.h5 and the way back, of which there is none where the
            displacement folds.

    Returns:
        The result with the determinants of the file.

    Raises:
        ValueError: the folder cannot be written to.

    Example: `write_registration(register(moving, fixed), "out")`
    """
    out = check_output_folder(out)
    if jacobian:
        check_cells(result.fixed)
    with staged(out, last=METRICS) as folder:
        if result.fixed.kind == "png":
            write_image(folder / "warped.png", result.values, result.fixed, result.moving.dtype)
        else:
            write_image(folder / "warped.nii.gz", result.values, result.fixed)
        write_displacement(folder / DISPLACEMENT, result.displacement, result.fixed)
        write_affine(folder / AFFINE, result.affine, result.fixed.is_flat)
        written, _ = read_displacement(folder / DISPLACEMENT)
        if jacobian:
            write_determinants(folder, written, result.affine, result.fixed)
        result = judged(replace(result, metrics={**result.metrics, **folding(written)}))
        certificate = None
        if sum(n > 1 for n in result.fixed.shape) > 1:  # no line, which no certificate is of
            certificate = fold_certificate(written)
            result.metrics["certificate"] = _told(result, certificate, written.ndim == 5)
        outlines = None if labels is None else outlines_of(result, *labels)
        if outlines is not None:
            result.metrics["dice"] = outlines.overlap
            said = [*result.metrics["warnings"], *fallen(outlines.overlap)]
            result.metrics["warnings"] = list(dict.fromkeys(said))  # saved again, said once
        images = images_of(result.moving, result.fixed, out)
        named = {"images": images} if images else {}
        if composites:  # before the page, whose figures keep more of the memory
            whole = whole_map(written, result.affine, result.fixed.grid)
            result.metrics["inverse"] = write_composites(folder, whole, certificate)
        if report:
            shown = replace(result, displacement=written)
            write_pair_page(shown, folder / REPORT, credits, outlines)
        write_json(folder / METRICS, {**result.metrics, **named, **(more or {})})
        left = {file.name for file in folder.iterdir()}
    # What an earlier result of the pair left, and this one has not.
    for name in (*MAPS, REPORT, COMPOSITE, INVERSE, INVERSE_COMPOSITE):
        if name not in left:
            (out / name).unlink(missing_ok=True)
    return result


def add_determinants(folder: Path) -> None:
    """The maps of the determinant, beside a registration that was written without them.

    Args:
        folder: of `write_registration`; nothing is done where the maps are there.

    Raises:
        FileNotFoundError, ValueError: as `read_map`; a grid that has no such maps.

    Example: `add_determinants(Path("out"))`
    """
    if not all((folder / name).is_file() for name in MAPS):
        displacement, affine, fixed = read_map(folder)
        with staged(folder) as temporary:
            write_determinants(temporary, displacement, affine, fixed)


def read_registration(
    images: PairImages,
    folder: str | Path,
    normalization: Normalization | None = None,
) -> Registration:
    """A registration again, from the files that `write_registration` left.

    Args:
        images: the images as they were read for it, and their masks.
        folder: where it was written; or a displacement file alone.
        normalization: of the images that the metrics compare; None: the default percentiles.

    Returns:
        The result, its displacement as in the file; without metrics.json, metrics are empty, the
        seconds NaN and the method "given".

    Raises:
        FileNotFoundError, ValueError: there is no displacement, or not one on the fixed grid.

    Example: `read_registration(PairImages(moving, fixed), "out").metrics`
    """
    folder = Path(folder)
    displacement, affine, grid = read_map(folder)
    check_grid(grid, images.fixed)
    found = read_json(folder / METRICS) if (folder / METRICS).exists() else {}
    seconds = found.get("seconds")
    return registration_of(
        images.prepared(normalization, affine),
        displacement,
        method=str(found.get("method", "given")),
        similarity=str(found.get("similarity", "unknown")),
        seconds=float(seconds) if isinstance(seconds, int | float) else float("nan"),
        metrics=found,
        fill=_number(found.get("fill")),
    )


def read_map(place: str | Path) -> tuple[Tensor, np.ndarray, Image]:
    """A displacement, and the affine map that comes after it where a registration left both.

    Args:
        place: a folder of `write_registration`; or a displacement file alone, without an affine.

    Returns:
        The displacement (1, D, *S), the affine (4, 4), and the fixed grid.

    Raises:
        FileNotFoundError, ValueError: there is no displacement, or a file that is none.

    Example: `read_map("out")[1]`
    """
    place = Path(place)
    folder = place.is_dir()
    if folder and not (place / DISPLACEMENT).exists():
        raise FileNotFoundError(f"the folder {place} holds no {DISPLACEMENT}, as register's do")
    displacement, grid = read_displacement(place / DISPLACEMENT if folder else place)
    has_affine = folder and (place / AFFINE).exists()
    kept = read_json(place / METRICS) if folder and (place / METRICS).exists() else {}
    if "affine" in kept and not has_affine:
        raise FileNotFoundError(f"{place / AFFINE} is missing: the displacement goes with it")
    return displacement, read_affine(place / AFFINE) if has_affine else np.eye(4), grid


def read_transform(folder: str | Path) -> Chain:
    """What a registration found, as one transform: the displacement, then the affine map.

    Args:
        folder: of `write_registration`.

    Raises:
        FileNotFoundError, ValueError: as `read_map`.

    Example: `read_transform("out")([[0.0, 0.0, 0.0]])`
    """
    displacement, affine, grid = read_map(folder)
    return whole_map(displacement, affine, grid.grid)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def check_grid(grid: Image, fixed: Image) -> None:
    """Refuse a displacement that lives on another grid than the fixed image's.

    Args:
        grid: as `read_displacement` gives it.
        fixed: the fixed image.

    Raises:
        ValueError: sizes or places differ.

    Example: `check_grid(read_displacement("displacement.nii.gz")[1], fixed)`
    """
    apart = np.inf
    if grid.shape == fixed.shape:
        matrix = voxel_map(fixed, grid)
        corners = grid.grid.corners[: len(grid.shape)]
        apart = np.abs(matrix[:, :-1] @ corners + matrix[:, -1:] - corners).max()
    if not apart < 0.01:
        raise ValueError(
            f"{grid.name} is no displacement on the grid of {fixed.name}: {grid.shape} voxels, "
            f"{fixed.shape} are needed, at the same place"
        )


def _told(result: Registration, certificate: FoldCertificate, volume: bool) -> dict[str, Any]:
    """What metrics.json says of the certificate; where a guarantee was asked for, it must pass.

    The certificate is of the displacement as its file holds it. Determinants of the whole map in
    mm are those times the affine's.
    """
    if "repair" in result.metrics and not certificate.passes:
        raise ValueError(f"the displacement cannot be guaranteed in its file: {certificate}")
    determinant = float(np.linalg.det(result.affine[:3, :3]))
    words = str(certificate)
    if determinant < 0:
        words += f"; the affine map mirrors: its determinant is {determinant:.4g}"
    found: dict[str, Any] = {"verdict": certificate.verdict, "in_words": words}
    if volume:
        found |= {name: getattr(certificate, name) for name in _OF_VOLUMES}
        found["where"] = list(certificate.where)
        found["affine_determinant"] = determinant
        found["smallest_determinant_mm"] = certificate.smallest_determinant * determinant
    return found
