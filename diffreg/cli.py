"""The command line: `diffreg register | apply | train | demo | info`.

A user's mistake is one line on stderr and exit status 2; DIFFREG_DEBUG=1 shows where it was found.
Modules are imported by the command that needs them: `diffreg --help` waits for no torch.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from diffreg import __version__
from diffreg._extras import require

if TYPE_CHECKING:
    from diffreg.data.images import Image

SIMILARITIES = ("ssd", "ncc", "pls", "ngf")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: what follows `diffreg` on the command line; None: this process's.

    Returns:
        The exit status: 0, 2 for a user's mistake, 130 when interrupted.

    Example:
        >>> from diffreg.cli import main
        >>> main(["apply", "missing.nii.gz", "label.nii.gz", "-o", "out.nii.gz"])
        2
    """
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except KeyboardInterrupt:
        print("diffreg: interrupted", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, ImportError) as error:
        if os.environ.get("DIFFREG_DEBUG"):
            raise
        print(f"diffreg: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


class _Parser(argparse.ArgumentParser):
    """argparse, with its errors in our one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"diffreg: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="diffreg", description="Diffeomorphic registration of 2-D images.")
    parser.add_argument("--version", action="version", version=f"diffreg {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_register(commands)
    _add_apply(commands)
    _add_train(commands)
    demo = commands.add_parser("demo", help="train and evaluate on the images in the package")
    demo.add_argument("-o", "--out", default="demo", help="folder of the results (demo)")
    demo.set_defaults(run=_demo)
    info = commands.add_parser("info", help="say what is installed")
    info.set_defaults(run=_info)
    return parser


def _add_register(commands: Any) -> None:
    command = commands.add_parser("register", help="bring MOVING onto FIXED")
    command.add_argument("moving", metavar="MOVING", help="NIfTI or PNG file")
    command.add_argument("fixed", metavar="FIXED", help="NIfTI or PNG file; its grid is kept")
    command.add_argument("-o", "--out", required=True, help="folder of the results")
    command.add_argument("--method", choices=("variational", "network"))
    command.add_argument("--checkpoint", help="a trained network")
    command.add_argument(
        "--similarity",
        choices=SIMILARITIES,
        help="of the variational method (ncc); pls or ngf where the contrasts differ",
    )
    command.add_argument("--fixed-mask", metavar="MASK", help="voxels of FIXED that count")
    command.add_argument("--slice", type=int, metavar="K", help="slice of volumes, both images")
    command.add_argument("--moving-slice", type=int, metavar="K", help="slice of MOVING instead")
    command.set_defaults(run=_register)


def _add_apply(commands: Any) -> None:
    command = commands.add_parser("apply", help="warp labels and other images onto the fixed grid")
    command.add_argument("displacement", metavar="DISPLACEMENT", help="displacement.nii.gz")
    command.add_argument("image", metavar="IMAGE", help="NIfTI or PNG file")
    command.add_argument("-o", "--out", required=True, help="the warped image's file")
    command.add_argument(
        "--interpolation",
        choices=("linear", "nearest"),
        default="linear",
        help="linear, or nearest for labels, which keeps their type",
    )
    command.add_argument("--slice", type=int, metavar="K", help="slice of a volume")
    command.set_defaults(run=_apply)


def _add_train(commands: Any) -> None:
    command = commands.add_parser("train", help="train a network")
    command.add_argument("config", metavar="CONFIG", help="TOML file")
    command.add_argument(
        "overrides", metavar="section.key=value", nargs="*", help="settings that replace the file's"
    )
    command.set_defaults(run=_train)


def _register(options: argparse.Namespace) -> None:
    from diffreg.losses import Objective
    from diffreg.outputs import check_output_folder
    from diffreg.registration import (
        compared_region,
        register,
        relative_spacing,
        write_registration,
    )

    trained = _network(options)
    out = check_output_folder(options.out)
    of_moving = options.slice if options.moving_slice is None else options.moving_slice
    moving, fixed = _read([options.moving, options.fixed], [of_moving, options.slice])
    mask = _mask(options)
    compared_region(moving, fixed, mask)  # refuses what cannot be registered, before any word
    similarity = options.similarity or "ncc"
    if options.method is None and options.checkpoint is None:
        print(f"no --checkpoint: the variational method with {similarity}", file=sys.stderr)
    objective = Objective(similarity, spacing=relative_spacing(fixed))
    with _progress("register") as progress:
        result = register(
            moving, fixed, objective=objective, mask=mask, progress=progress, **trained
        )
    result = write_registration(result, out)
    print(f"{out / 'report.html'}: {result.verdict}")


def _apply(options: argparse.Namespace) -> None:
    from diffreg._files import require_folder
    from diffreg.data.geometry import coverage, resample_to
    from diffreg.data.images import check_ending, write_image
    from diffreg.data.transforms import read_displacement

    out = Path(options.out)
    displacement, grid = read_displacement(options.displacement)
    check_ending(out, grid)
    require_folder(out.absolute().parent, "the output's folder")
    nearest = options.interpolation == "nearest"
    (image,) = _read([options.image], [options.slice], label=nearest)
    if grid.kind == "png" and image.kind != "png":
        raise ValueError(f"{image.name} must be a PNG file, as those that were registered")
    coverage(image, grid)
    warped = resample_to(image, grid, displacement, options.interpolation)
    write_image(out, warped, grid, image.dtype if nearest or grid.kind == "png" else None)
    print(f"{out}: {options.image} on the grid of {options.displacement}, {options.interpolation}")


def _train(options: argparse.Namespace) -> None:
    from diffreg.config import load_config
    from diffreg.trainer import Trainer

    Trainer(load_config(options.config, options.overrides)).train()


def _demo(options: argparse.Namespace) -> None:
    from diffreg.demo import run

    run(options.out)


def _info(options: argparse.Namespace) -> None:
    import numpy
    import torch

    from diffreg.ops._core import build_info

    lines = build_info() | {
        "python": platform.python_version(),
        "torch at run time": torch.__version__,
        "numpy": numpy.__version__,
        "threads": torch.get_num_threads(),
    }
    for key, value in lines.items():
        print(f"{key}: {value}")


def _network(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `register` that come with a checkpoint; none for the variational method."""
    if options.method == "network" and options.checkpoint is None:
        raise ValueError("--method network needs --checkpoint, the network to use")
    if options.method == "variational" and options.checkpoint is not None:
        raise ValueError("--method variational uses no --checkpoint; leave one of them out")
    if options.checkpoint is None:
        return {}
    path = Path(options.checkpoint)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if options.similarity is not None:
        raise ValueError("--similarity is of the variational method; a network keeps its own")
    from diffreg.trainer import load_network

    return load_network(path)


def _read(paths: Sequence[str], slices: Sequence[int | None], label: bool = False) -> list[Image]:
    """The images; a slice number is for volumes only, and at least one must be a volume then."""
    from diffreg.data.images import count_slices, read_image

    volume = [count_slices(path) > 1 for path in paths]
    if not any(volume) and any(index is not None for index in slices):
        raise ValueError(f"--slice is for volumes; {' and '.join(paths)} hold one image each")
    return [
        read_image(path, index if is_volume else None, label)
        for path, index, is_volume in zip(paths, slices, volume, strict=True)
    ]


def _mask(options: argparse.Namespace) -> Image | None:
    if options.fixed_mask is None:
        return None
    from diffreg.data.images import count_slices, read_image

    path = options.fixed_mask
    return read_image(path, options.slice if count_slices(path) > 1 else None, label=True)


@contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, called with (done, at most); silent where stderr is no terminal."""
    tqdm = require("tqdm", "progress bars")
    with tqdm.tqdm(desc=title, disable=None, leave=False) as bar:

        def show(done: int, at_most: int) -> None:
            bar.total = at_most
            bar.update(done - bar.n)

        yield show


if __name__ == "__main__":
    sys.exit(main())
