"""`diffreg certify`: whether a transform's fields fold, and whether its affine maps mirror.

Nothing of torch is imported where the options are read: `diffreg --help` waits for none.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from diffreg.cli.steps import add_images, add_source, parsed, read_steps

if TYPE_CHECKING:
    from torch import Tensor


def add_certify(command: argparse.ArgumentParser) -> None:
    """What is judged."""
    command.add_argument(
        "displacement",
        metavar="TRANSFORM",
        help="a transform's file, or file.npz:ARRAY in voxels, or a folder of register",
    )
    command.add_argument(
        "--affine",
        metavar="MAT",
        help="ITK's .mat of the affine map after it, of which it is said whether it mirrors (the "
        "affine.mat beside register's displacement.nii.gz)",
    )
    command.add_argument(
        "--threshold", type=float, default=0.0, help="what determinants must exceed (0)"
    )
    add_source(command)
    add_images(command)
    command.set_defaults(run=run_certify)


class _Judged(NamedTuple):
    """What a transform consists of: displacements in voxels, determinants of affine maps."""

    fields: list[tuple[str, Tensor]]
    affines: list[tuple[str, float]]


def run_certify(options: argparse.Namespace) -> int:
    """Say whether a transform's fields fold, and whether its affine maps mirror.

    The determinant of a whole map in RAS mm is the product of those of its parts.
    """
    from diffreg.fields import fold_certificate, largest_safe_scale
    from diffreg.registration.devices import device_named

    judged = _judged(options)
    passes, whole = True, 1.0
    for name, displacement in judged.fields:
        displacement = displacement.to(device_named(options.device))
        certificate = fold_certificate(displacement, options.threshold)
        print(f"{name}: {certificate}")
        passes &= certificate.passes
        whole *= certificate.determinant_bound
        if certificate.folded_cells and options.threshold < 1:
            scale = largest_safe_scale(displacement, options.threshold, limit=1.0)
            scale = math.floor(1e4 * scale) / 1e4
            print(f"on the way from 0 to it no cell fails before {scale:.4f} of the displacement")
    affine = math.prod(determinant for _, determinant in judged.affines)
    mirroring = [entry for entry in judged.affines if affine < 0 and entry[1] < 0]
    for name, determinant in mirroring:
        print(f"{name}: the affine map mirrors: its determinant is {determinant:.4g}")
    if not mirroring and judged.affines:
        whole *= affine
        bound = "is" if not judged.fields else "is at least"
        print(f"in RAS mm: the determinant of the whole map {bound} {whole:.4g}")
    return 0 if passes and not mirroring and whole > options.threshold else 1


def _judged(options: argparse.Namespace) -> _Judged:
    from diffreg.data.affine import read_affine
    from diffreg.registration.folders import AFFINE, DISPLACEMENT
    from diffreg.transforms import Affine, Field, format_of, read_field

    place, named, inverted = parsed(options.displacement)
    path = Path(place) / DISPLACEMENT if Path(place).is_dir() else Path(place)
    name = named or options.source or format_of(path)
    found = _Judged([], [])
    if name in ("learn2reg", "voxelmorph") and options.fixed is None and not inverted:
        found.fields.append((str(path), read_field(path, name)))  # voxels need no place
    else:
        named = str(path) if Path(place).is_dir() else options.displacement
        for step in read_steps([named], options.fixed, options.moving, name).chain.steps:
            if isinstance(step, Field):
                found.fields.append((str(path), step.displacement))
            else:
                found.affines.append((str(path), step.determinant))
    beside = path.absolute().parent / AFFINE
    if options.affine is not None or (path.name == DISPLACEMENT and beside.exists()):
        chosen = beside if options.affine is None else Path(options.affine)
        found.affines.append((str(chosen), Affine(read_affine(chosen)).determinant))
    return found
