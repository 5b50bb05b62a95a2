"""`diffreg apply`: images, labels, series, vectors and colours through a transform, sampled once.

Nothing of torch is imported where the options are read: `diffreg --help` waits for none.
"""

from __future__ import annotations

import argparse
import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from diffreg.cli.steps import add_steps, files_of_step, read_steps

if TYPE_CHECKING:
    from diffreg.data.images import Image
    from diffreg.transforms import Transform


def add_apply(command: argparse.ArgumentParser, image: str) -> None:
    """What is applied to what, and how it is sampled."""
    command.add_argument(
        "places",
        metavar="IMAGE",
        nargs="+",
        help=f"{image}; a series, vectors or colours too. Before it, in place of -t and --fixed, "
        "the folder that `register` wrote, or displacement.nii.gz alone",
    )
    add_steps(command, required=False)
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
    from diffreg.data.images import check_ending, file_of
    from diffreg.system.files import require_output

    images = [options.places[-1], options.fixed, options.affine]
    read = [file_of(image) for image in images if image is not None]
    steps = [*options.places[:-1], *options.transform]
    out = require_output(options.out, chain(read, *map(files_of_step, steps)))
    options.image = options.places[-1]
    by, fixed, words = _map_of(options)
    check_ending(out, fixed)
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
    from diffreg.registration.transforms import whole_map

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
    return whole_map(displacement, affine, grid.grid), grid, words


def _write_sampled(options: argparse.Namespace, out: Path, by: Transform, fixed: Image) -> str:
    """Write the image on the fixed grid; how it was interpolated.

    Whole numbers that are blended become float32; labels and colours keep their type.
    """
    import numpy as np

    from diffreg.data._itk import WRITTEN
    from diffreg.data._nifti import save
    from diffreg.data.images import Image, write_image
    from diffreg.registration.devices import device_named
    from diffreg.transforms.resampling import sampled
    from diffreg.transforms.several import has_several
    from diffreg.transforms.source import source_of

    if options.slice is None and options.time is None and has_several(options.image):
        if out.suffix.lower() in WRITTEN:
            raise ValueError(f"{out}: a series, vectors or colours are written as .nii.gz or .nii")
        source = source_of(options.image, options.interpolation)
    else:
        source = source_of(*_to_warp(options))
    if fixed.kind == "png" and source.place.kind != "png":
        raise ValueError(f"{options.image} must be a picture, as those that were registered")
    dtype = source.dtype
    if source.is_blended and not source.is_colours and fixed.kind != "png":
        dtype = np.dtype(np.float64 if dtype == np.float64 else np.float32)
    found = sampled(source, fixed, by, options.fill, dtype, device_named(options.device))
    if isinstance(found, Image):
        write_image(out, found.data, fixed, dtype)
    else:
        save(out, found)
    if source.interpolation == "nearest" and options.interpolation is None:
        line = f"{options.image}: labels, so nearest; --interpolation linear blends them"
        print(line, file=sys.stderr)
    return source.interpolation


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
