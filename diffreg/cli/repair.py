"""`diffreg repair`: the nearest transform whose fields do not fold, in the file of any tool.

Nothing of torch is imported where the options are read: `diffreg --help` waits for none.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from diffreg.cli.steps import Steps, add_source, add_written, check_out, one_of, parsed

VOXELS = {"learn2reg", "voxelmorph"}  # formats whose numbers say nothing of a place


def add_repair(subparsers: Any) -> None:
    """What is repaired, and where it is written."""
    command = subparsers.add_parser(
        "repair",
        help="write a transform of any tool so that it does not fold",
        description="Write the nearest transform that does not fold: what folds moves, and what "
        "is beside it. Affine maps stay. What is in OUT is certified; the exit status is 0 where "
        "it passes. OUT has the format of IN, if its ending allows.",
    )
    command.add_argument("transform", metavar="IN", help="a transform's file, or register's folder")
    command.add_argument("-o", "--out", required=True, help="the file to write")
    command.add_argument(
        "--threshold", type=float, default=0.0, help="what determinants shall exceed (0), below 1"
    )
    add_source(command)
    add_written(command)
    command.set_defaults(run=run_repair)


def run_repair(options: argparse.Namespace) -> int:
    """Write a transform whose fields do not fold, and say what that took."""
    from dataclasses import replace

    from diffreg.fields import make_diffeomorphic
    from diffreg.transforms import FORMATS, Affine, Field, compose, read, write

    if not 0 <= options.threshold < 1:
        raise ValueError(f"--threshold must be in [0, 1), got {options.threshold}")
    check_out(options)
    steps, name = _read(options)
    for line in steps.notes:
        print(line, file=sys.stderr)
    parts = []
    for step in steps.chain.steps:
        if isinstance(step, Field):
            repair = make_diffeomorphic(step.displacement, options.threshold)
            print(f"{step.grid.name}: {repair.before}")
            if repair.moved_voxels:
                print(f"repaired: {repair}")
            step = replace(step, displacement=repair.displacement)
        parts.append(step)
    places = options.fixed, options.moving
    write(options.out, compose(parts), name, *places)
    print(f"{options.out}: {name}, {FORMATS[name]}")
    passes = True
    for step in read(options.out, name, *places).steps:
        if isinstance(step, Field):
            certificate = step.certificate(options.threshold)
            print(f"in {options.out}: {certificate}")
            passes &= certificate.passes
    if not passes:
        print(
            f"diffreg: warning: {options.out} does not pass, for it is sampled anew on one grid: "
            "an .h5 keeps each field as it is",
            file=sys.stderr,
        )
    mirrors = math.prod(step.determinant for step in parts if isinstance(step, Affine)) < 0
    if mirrors:
        print(
            f"diffreg: warning: the affine map of {options.transform} mirrors: that stays",
            file=sys.stderr,
        )
    return 0 if passes and not mirrors else 1


def _read(options: argparse.Namespace) -> tuple[Steps, str]:
    """The transform and the format of OUT, known before any work: that of IN, where the name of OUT
    allows it. From voxels to voxels without a place, voxels are the world's."""
    import numpy as np

    from diffreg.data.grid import Grid
    from diffreg.transforms import can_hold, format_of, format_to_write, read_field

    place, named, inverted = parsed(options.transform)
    source = None if Path(place).is_dir() else named or options.source or format_of(place)
    kept = source if source is not None and can_hold(options.out, source) else None
    name = format_to_write(options.out, options.to or kept)
    if {source, name} <= VOXELS and options.fixed is None and not inverted:
        size = tuple(read_field(place, source).shape[2:])
        options.fixed = Grid(size, np.eye(4), place)
    return one_of(options), name
