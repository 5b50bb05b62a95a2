"""`diffreg repair`: the nearest transform whose fields do not fold, in the file of any tool.

Nothing of torch is imported where the options are read: `diffreg --help` waits for none.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from diffreg.cli.steps import Steps, add_source, add_written, check_out, one_of, parsed


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
    from diffreg.transforms import FORMATS, Field, compose, read, write

    if not 0 <= options.threshold < 1:
        raise ValueError(f"--threshold must be in [0, 1), got {options.threshold}")
    check_out(options)
    steps, source = _read(options)
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
    name = write(options.out, compose(parts), options.to or _kept(options.out, source), *places)
    print(f"{options.out}: {name}, {FORMATS[name]}")
    passes = True
    for step in read(options.out, name, *places).steps:
        if isinstance(step, Field):
            certificate = step.certificate(options.threshold)
            print(f"in {options.out}: {certificate}")
            passes &= certificate.passes
    if not passes:
        print(
            f"diffreg: warning: {options.out} folds, for it is a chain sampled on one grid: an .h5 "
            "keeps its parts",
            file=sys.stderr,
        )
    return 0 if passes else 1


def _read(options: argparse.Namespace) -> tuple[Steps, str | None]:
    """The transform and the format of its file, None of a folder; of fields in voxels that nothing
    places, voxels are the world's."""
    import numpy as np

    from diffreg.data.grid import Grid
    from diffreg.transforms import format_of, read_field

    place, named, inverted = parsed(options.transform)
    if Path(place).is_dir():
        return one_of(options), None
    source = named or options.source or format_of(place)
    if source in ("learn2reg", "voxelmorph") and options.fixed is None and not inverted:
        size = tuple(read_field(place, source).shape[2:])
        options.fixed = Grid(size, np.eye(4), place)
    return one_of(options), source


def _kept(out: str, source: str | None) -> str | None:
    """The format of what is repaired, where the name of what is written allows it."""
    from diffreg.transforms import can_hold

    return source if source is not None and can_hold(out, source) else None
