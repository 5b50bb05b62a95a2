"""The commands that write transforms, or points that went through one.

Nothing of torch is imported where the options are read: `diffreg --help` waits for none.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from diffreg.cli.steps import (
    Steps,
    add_images,
    add_source,
    add_steps,
    add_written,
    check_out,
    one_of,
    read_steps,
)


def add_transforms(subparsers: Any) -> None:
    """convert, compose, invert and points."""
    convert = subparsers.add_parser("convert", help="write a transform for another tool")
    convert.add_argument("transform", metavar="IN", help="a transform's file, or register's folder")
    convert.add_argument("out", metavar="OUT", help="the file to write")
    add_source(convert)
    add_written(convert)
    convert.set_defaults(run=run_convert)
    composed = subparsers.add_parser("compose", help="make one transform of several")
    add_steps(composed)
    composed.add_argument("-o", "--out", required=True, help="the file to write")
    add_written(composed)
    composed.set_defaults(run=run_compose)
    inverse = subparsers.add_parser(
        "invert",
        help="the way back, with its residual; refused where a field folds",
        description="The way back, with its residual; refused where a field folds. FIXED and "
        "MOVING are those of IN; a format of one field lies on the grid of MOVING.",
    )
    inverse.add_argument("transform", metavar="IN", help="a transform's file, or register's folder")
    inverse.add_argument("-o", "--out", required=True, help="the file to write")
    add_source(inverse)
    add_written(inverse)
    inverse.set_defaults(run=run_invert)
    points = subparsers.add_parser(
        "points", help="bring points of the fixed image to the moving one"
    )
    points.add_argument(
        "points",
        metavar="POINTS",
        help="CSV as ANTs has it, x,y,z in LPS mm, or .fcsv or .mrk.json of 3D Slicer",
    )
    add_steps(points)
    points.add_argument("-o", "--out", required=True, help="a file of the same kind")
    add_images(points)
    points.set_defaults(run=run_points)


def run_convert(options: argparse.Namespace) -> int:
    """Write a transform in another tool's format."""
    check_out(options)
    return _write(options, one_of(options))


def run_compose(options: argparse.Namespace) -> int:
    """Write one transform of several."""
    check_out(options)
    return _write(options, read_steps(options.transform, options.fixed, options.moving))


def run_invert(options: argparse.Namespace) -> int:
    """Write the inverse of a transform, and say how well it does.

    Its fixed image is the moving one of what is inverted.
    """
    from diffreg.transforms import format_to_write

    check_out(options)
    format_to_write(options.out, options.to)  # refused before what takes long
    steps = one_of(options).inverse()
    options.fixed, options.moving = options.moving, options.fixed
    try:
        return _write(options, steps)
    except ValueError as error:
        if "needs the fixed image" in str(error):
            line = f"{options.out} lies on the moving image's grid, as the way back does: --moving"
            raise ValueError(f"{line} says which") from None
        raise


def run_points(options: argparse.Namespace) -> int:
    """Bring points of the fixed image to the moving one."""
    import numpy as np

    from diffreg.transforms import Field
    from diffreg.transforms.points import ending_of, read_point_file

    out = Path(options.out)
    if ending_of(out) != ending_of(options.points):
        raise ValueError(f"{out}: the name must end in {ending_of(options.points)}, as the input's")
    check_out(options, options.points)
    file = read_point_file(options.points)
    steps = read_steps(options.transform, options.fixed, options.moving)
    to, of = steps.ends
    at, outside = file.points, np.zeros(len(file.points), bool)
    for step in steps.chain.steps:
        if isinstance(step, Field) and at.shape[1] == 3:
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
        f"{out}: {len(at)} points, from the transform's {of} image to its {to} one (those of an "
        f"inverse are exchanged); {file.format}"
    )
    return 0


def _write(options: argparse.Namespace, steps: Steps) -> int:
    from diffreg.transforms import FORMATS, write

    name = write(options.out, steps.chain, options.to, options.fixed, options.moving)
    for line in (*steps.notes, steps.order):
        print(line, file=sys.stderr)
    print(f"{options.out}: {name}, {FORMATS[name]}")
    return 0
