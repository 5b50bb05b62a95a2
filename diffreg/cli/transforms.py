"""The commands on transforms: apply, certify, convert, compose, invert, points, `info FILE`.

Nothing of torch is imported where the options are read: `diffreg --help` waits for none.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffreg.cli.steps import Steps, read_steps

if TYPE_CHECKING:
    from diffreg.data.images import Image
    from diffreg.transforms import Transform

_STEP = (
    "a transform's file, or a folder that `register` wrote; [FILE,1] or FILE,-1 inverts it, "
    "FORMAT:FILE names its format; may be given again, and a point passes the first one first, as "
    "with antsApplyTransforms"
)


def add_transforms(subparsers: Any) -> None:
    """The commands that have no image: convert, compose, invert and points."""
    convert = subparsers.add_parser("convert", help="write a transform for another tool")
    convert.add_argument("transform", metavar="IN", help="a transform's file, or register's folder")
    convert.add_argument("out", metavar="OUT", help="the file to write")
    convert.add_argument("--from", dest="source", metavar="FORMAT", help="of IN, where it is open")
    _add_written(convert)
    convert.set_defaults(run=run_convert)
    composed = subparsers.add_parser("compose", help="make one transform of several")
    composed.add_argument(
        "-t", "--transform", action="append", required=True, metavar="FILE", help=_STEP
    )
    composed.add_argument("-o", "--out", required=True, help="the file to write")
    _add_written(composed)
    composed.set_defaults(run=run_compose)
    inverse = subparsers.add_parser(
        "invert", help="the way back, with its residual; refused where a field folds"
    )
    inverse.add_argument("transform", metavar="IN", help="a transform's file, or register's folder")
    inverse.add_argument("-o", "--out", required=True, help="the file to write")
    inverse.add_argument("--from", dest="source", metavar="FORMAT", help="of IN, where it is open")
    _add_written(inverse)
    inverse.set_defaults(run=run_invert)
    points = subparsers.add_parser(
        "points", help="bring points of the fixed image to the moving one"
    )
    points.add_argument(
        "points",
        metavar="POINTS",
        help="CSV as ANTs has it, x,y,z in LPS mm, or .fcsv or .mrk.json of 3D Slicer",
    )
    points.add_argument(
        "-t", "--transform", action="append", required=True, metavar="FILE", help=_STEP
    )
    points.add_argument("-o", "--out", required=True, help="a file of the same kind")
    _add_images(points)
    points.set_defaults(run=run_points)


def _add_written(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--to", metavar="FORMAT", help="of OUT, where its ending leaves it open or is not ITK's"
    )
    _add_images(command)


def _add_images(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--fixed", metavar="IMAGE", help="the fixed image, where a format needs it"
    )
    command.add_argument("--moving", metavar="IMAGE", help="the moving image, where one needs it")


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
    command.add_argument("--from", dest="source", metavar="FORMAT", help="of it, where it is open")
    _add_images(command)
    command.set_defaults(run=run_certify)


def add_info(command: argparse.ArgumentParser) -> None:
    """What is described."""
    command.add_argument(
        "transform", metavar="FILE", nargs="?", help="a transform's file; else what is installed"
    )
    command.add_argument("--from", dest="source", metavar="FORMAT", help="of it, where it is open")
    _add_images(command)
    command.set_defaults(run=run_info)


def add_apply(command: argparse.ArgumentParser, image: str) -> None:
    """What is applied to what, and how it is sampled."""
    command.add_argument(
        "places",
        metavar="IMAGE",
        nargs="+",
        help=f"{image}; a series, vectors or colours too. Before it, in place of -t and --fixed, "
        "the folder that `register` wrote, or displacement.nii.gz alone",
    )
    command.add_argument(
        "-t", "--transform", action="append", default=[], metavar="FILE", help=_STEP
    )
    command.add_argument("--fixed", metavar="IMAGE", help="whose grid is filled, with -t")
    command.add_argument(
        "--affine", metavar="MAT", help="affine.mat, which comes after displacement.nii.gz"
    )
    command.add_argument("-o", "--out", required=True, help="the warped image's file")
    command.add_argument(
        "--interpolation",
        choices=("linear", "nearest", "label", "bspline"),
        help="linear; nearest for labels, which keeps their type (nearest where the image looks "
        "like labels, and it is said); label, the one that linear interpolation of each one's mask "
        "gives most; bspline, cubic",
    )
    command.add_argument("--slice", type=int, metavar="K", help="slice of a volume")
    command.add_argument("--time", type=int, metavar="K", help="time point of a series")
    command.set_defaults(run=run_apply, more="places")


def run_apply(options: argparse.Namespace) -> int:
    """Sample an image once on the fixed grid, through a whole transform."""
    from diffreg._files import require_folder
    from diffreg.data.images import check_ending

    out = Path(options.out)
    options.image = options.places[-1]
    by, fixed, words = _map_of(options)
    check_ending(out, fixed)
    require_folder(out.absolute().parent, "the output's folder")
    interpolation = _write_sampled(options, out, by, fixed)
    for line in words:
        print(line, file=sys.stderr)
    place = options.fixed or options.places[0]
    print(f"{out}: {options.image} on the grid of {place}, {interpolation}")
    return 0


def _map_of(options: argparse.Namespace) -> tuple[Transform, Image, list[str]]:
    """The transform of `apply`, the fixed image, and what is to say of them."""
    from diffreg.transforms.places import place_of

    if not options.transform:
        if len(options.places) != 2 or options.fixed is not None:
            raise ValueError(
                "apply takes -t FILE, once or more, --fixed IMAGE and an image; or a folder of "
                "register, or a displacement file, and an image"
            )
        return _map_of_place(options)
    if options.fixed is None or options.affine is not None or len(options.places) != 1:
        raise ValueError(
            "apply -t takes --fixed IMAGE, whose grid is filled, one image, and no --affine, which "
            "is one more -t"
        )
    steps = read_steps(options.transform, options.fixed, options.image)
    return steps.chain, place_of("fixed", options.fixed), [*steps.notes, steps.order]


def _map_of_place(options: argparse.Namespace) -> tuple[Transform, Image, list[str]]:
    """Of a folder of register, or of a displacement file."""
    from diffreg.data.affine import read_affine
    from diffreg.registration.files import read_map
    from diffreg.registration.folders import AFFINE
    from diffreg.transforms import Affine, Field, compose

    place = Path(options.places[0])
    displacement, affine, grid = read_map(place)
    words = []
    beside = place.absolute().parent / AFFINE
    if options.affine is not None:
        affine = read_affine(options.affine)
    elif place.is_file() and beside.exists():
        words.append(
            f"the displacement alone: {beside.name} lies beside it; its folder in its place, or "
            "--affine, applies both"
        )
    return compose([Field(displacement, grid.grid), Affine(affine, grid.is_flat)]), grid, words


def _write_sampled(options: argparse.Namespace, out: Path, by: Transform, fixed: Image) -> str:
    """Write the image on the fixed grid; how it was interpolated."""
    import numpy as np

    from diffreg._extras import require
    from diffreg._files import replacing
    from diffreg.data.images import write_image
    from diffreg.registration.devices import device_named
    from diffreg.transforms import resample
    from diffreg.transforms.several import has_several

    how = {"fill": options.fill, "device": device_named(options.device)}
    if options.slice is None and options.time is None and has_several(options.image):
        interpolation = options.interpolation or "linear"
        found = resample(options.image, fixed, by, interpolation, **how)
        with replacing(out) as temporary:
            require("nibabel", "NIfTI files").save(found, temporary)
        return interpolation
    image, interpolation = _to_warp(options)
    if fixed.kind == "png" and image.kind != "png":
        raise ValueError(f"{image.name} must be a picture, as those that were registered")
    kept = interpolation in ("nearest", "label") or fixed.kind == "png"
    blended = np.float64 if image.dtype == np.float64 else np.float32
    dtype = image.dtype if kept else blended
    found = resample(image, fixed, by, interpolation, dtype=dtype, **how)
    write_image(out, found.data, fixed, dtype)
    if interpolation == "nearest" and options.interpolation is None:
        line = f"{options.image}: labels, so nearest; --interpolation linear blends them"
        print(line, file=sys.stderr)
    return interpolation


def _to_warp(options: argparse.Namespace) -> tuple[Image, str]:
    """The image of `apply` and its interpolation: nearest for labels, where nothing is said."""
    from diffreg.cli.commands import read_parts
    from diffreg.data.labels import looks_like_labels

    def read(label: bool) -> Image:
        return read_parts([options.image], [options.slice], [options.time], label)[0]

    if options.interpolation is not None:
        return read(options.interpolation in ("nearest", "label")), options.interpolation
    try:
        labels = read(True)
    except ValueError:  # not whole numbers, or no image: which of them, the other way says
        return read(False), "linear"
    return (labels, "nearest") if looks_like_labels(labels) else (read(False), "linear")


def run_convert(options: argparse.Namespace) -> int:
    """Write a transform in another tool's format."""
    steps = _one(options)
    return _write(options, steps.chain, steps)


def run_compose(options: argparse.Namespace) -> int:
    """Write one transform of several."""
    steps = read_steps(options.transform, options.fixed, options.moving)
    return _write(options, steps.chain, steps)


def run_invert(options: argparse.Namespace) -> int:
    """Write the inverse of a transform, and say how well it does."""
    steps = _one(options).inverse()
    options.fixed, options.moving = options.moving, options.fixed
    return _write(options, steps.chain, steps)


def run_points(options: argparse.Namespace) -> int:
    """Bring points of the fixed image to the moving one."""
    import numpy as np

    from diffreg._files import require_folder
    from diffreg.transforms import Field
    from diffreg.transforms.points import ending_of, read_point_file

    out = Path(options.out)
    if ending_of(out) != ending_of(options.points):
        raise ValueError(f"{out}: the name must end in {ending_of(options.points)}, as the input's")
    require_folder(out.absolute().parent, "the output's folder")
    file = read_point_file(options.points)
    steps = read_steps(options.transform, options.fixed, options.moving)
    at, outside = file.points, np.zeros(len(file.points), bool)
    for step in steps.chain.steps:
        if isinstance(step, Field):
            outside |= ~step.holds(at)
        at = step(at)
    file.write(out, at)
    for line in (*steps.notes, steps.order):
        print(line, file=sys.stderr)
    if outside.any():
        print(
            f"diffreg: warning: {int(outside.sum())} of {len(at)} points lie outside the grid of a "
            "field, where it moves nothing",
            file=sys.stderr,
        )
    print(
        f"{out}: {len(at)} points of the fixed image, where they lie in the moving one; "
        f"{file.format}"
    )
    return 0


def _one(options: argparse.Namespace) -> Steps:
    """The transform of a command that takes one."""
    named = options.transform if options.source is None else f"{options.source}:{options.transform}"
    return read_steps([named], options.fixed, options.moving)


def _write(options: argparse.Namespace, transform: Transform, steps: Steps) -> int:
    from diffreg._files import require_folder
    from diffreg.transforms import FORMATS, write

    require_folder(Path(options.out).absolute().parent, "the output's folder")
    name = write(options.out, transform, options.to, fixed=options.fixed, moving=options.moving)
    for line in (*steps.notes, steps.order):
        print(line, file=sys.stderr)
    print(f"{options.out}: {name}, {FORMATS[name]}")
    return 0


def run_certify(options: argparse.Namespace) -> int:
    """Say whether a transform's fields fold, and whether its affine maps mirror."""
    from diffreg.fields import fold_certificate, largest_safe_scale
    from diffreg.registration.devices import device_named

    displacements, affines = _judged(options)
    passes = True
    for name, displacement in displacements:
        displacement = displacement.to(device_named(options.device))
        certificate = fold_certificate(displacement, options.threshold)
        print(f"{name}: {certificate}")
        passes &= certificate.passes
        if certificate.folded_cells and options.threshold < 1:
            scale = largest_safe_scale(displacement, options.threshold, limit=1.0)
            scale = math.floor(1e4 * scale) / 1e4
            print(f"on the way from 0 to it no cell fails before {scale:.4f} of the displacement")
    for name, determinant in affines:
        if determinant < 0:
            print(f"{name}: the affine map mirrors: its determinant is {determinant:.4g}")
            passes = False
    return 0 if passes else 1


def _judged(
    options: argparse.Namespace,
) -> tuple[list[tuple[str, Any]], list[tuple[str, float]]]:
    """Displacements in voxels, and determinants of affine maps, each with its file's name.

    The determinant of a whole map in RAS mm is the product of the parts' own.
    """
    from diffreg.data.affine import read_affine
    from diffreg.data.transforms import read_field
    from diffreg.registration.folders import AFFINE, DISPLACEMENT
    from diffreg.transforms import Affine, Field, read

    path = Path(options.displacement)
    path = path / DISPLACEMENT if path.is_dir() else path
    fields: list[tuple[str, Any]] = []
    affines: list[tuple[str, float]] = []
    if ".npz" in path.name.lower() and options.source is None:  # without a grid
        fields.append((str(path), read_field(path)))
    else:
        for step in read(path, options.source, options.fixed, options.moving).steps:
            if isinstance(step, Field):
                fields.append((str(path), step.displacement))
            else:
                affines.append((str(path), step.determinant))
    beside = path.absolute().parent / AFFINE
    if options.affine is not None or (path.name == DISPLACEMENT and beside.exists()):
        chosen = beside if options.affine is None else Path(options.affine)
        affines.append((str(chosen), Affine(read_affine(chosen)).determinant))
    return fields, affines


def run_info(options: argparse.Namespace) -> int:
    """Say what a transform is; without one, what is installed."""
    if options.transform is None:
        from diffreg.cli.info import description

        print("\n".join(description()))
        return 0
    from diffreg.cli.described import described
    from diffreg.transforms import FORMATS, format_of

    path = options.transform
    name = None if Path(path).is_dir() else options.source or format_of(path)
    steps = _one(options)
    kind = "a folder of register" if name is None else f"{name}, {FORMATS[name]}"
    print("\n".join([f"{path}: {kind}", *described(steps.chain)]))
    return 0
