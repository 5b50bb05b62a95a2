"""The words of the command line: each command's arguments, and what runs it."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from diffreg import __version__
from diffreg.cli import commands, manifests
from diffreg.cli.apply import add_apply
from diffreg.cli.certify import add_certify
from diffreg.cli.export import add_export
from diffreg.cli.repair import add_repair
from diffreg.cli.spelling import Parser
from diffreg.cli.steps import add_images, add_source, add_start
from diffreg.cli.transforms import add_transforms
from diffreg.cli.variational import add_beside, add_minimised

AFFINE = ("auto", "none", "translation", "rigid", "similarity", "affine")
_IMAGE = (
    "NIfTI, MGH or PNG file, or file.npz:ARRAY; with diffreg[itk] .mha, .nrrd, .tif, .jpg or .dcm, "
    "or a folder with a DICOM series, folder:UID of several"
)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of one command; what it has several of may go on after an option.

    Args:
        arguments: what follows `diffreg` on the command line; None: this process's.

    Raises:
        SystemExit: 2 where they are wrong, after one line on stderr; 0 after --help.

    Example:
        >>> from diffreg.cli.parser import parsed
        >>> parsed(["train", "a.toml", "--resume", "training.steps=9"]).overrides
        ['training.steps=9']
    """
    parser = _parser()
    options, rest = parser.parse_known_args(sys.argv[1:] if arguments is None else arguments)
    more = getattr(options, "more", "")
    if rest and (not more or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        setattr(options, more, [*getattr(options, more), *rest])
    return options


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="diffreg", description="Diffeomorphic registration of slices and volumes.")
    parser.add_argument("--version", action="version", version=f"diffreg {__version__}")
    parser.set_defaults(safe=lambda options: "no file is half-written")
    commands_ = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_register(commands_)
    _add_evaluate(commands_)
    _add_apply(commands_)
    _add_certify(commands_)
    add_repair(commands_)
    add_transforms(commands_)
    _add_train(commands_)
    export = commands_.add_parser("export", help="a trained network for use elsewhere")
    add_export(export)
    demo = commands_.add_parser("demo", help="train and evaluate on the images in the package")
    demo.add_argument("-o", "--out", default="demo", help="folder of the results (demo)")
    demo.set_defaults(run=commands.run_demo)
    _add_bench(commands_)
    _add_info(commands_)
    return parser


def _add_register(subparsers: Any) -> None:
    command = subparsers.add_parser(
        "register", help="bring MOVING onto FIXED, or a manifest's pairs"
    )
    command.add_argument(
        "moving",
        metavar="MOVING",
        help=f"{_IMAGE}; alone, a manifest: a .csv, .toml or .json file, or a folder of images, "
        "all of whose pairs are registered",
    )
    command.add_argument("fixed", metavar="FIXED", nargs="?", help="the same; its grid is kept")
    command.add_argument("-o", "--out", required=True, help="folder of the results")
    _add_method(command)
    add_start(command)
    add_beside(command)
    command.add_argument("--fixed-mask", metavar="MASK", help="voxels of FIXED that count")
    command.add_argument("--moving-mask", metavar="MASK", help="voxels of MOVING that count")
    command.add_argument("--fixed-label", metavar="LABELS", help="of FIXED, for outlines and Dice")
    command.add_argument("--moving-label", metavar="LABELS", help="of MOVING, both or neither")
    command.add_argument("--slice", type=int, metavar="K", help="slice of volumes, both images")
    command.add_argument("--moving-slice", type=int, metavar="K", help="slice of MOVING instead")
    command.add_argument("--time", type=int, metavar="K", help="time point of series, both images")
    command.add_argument("--moving-time", type=int, metavar="K", help="that of MOVING instead")
    command.add_argument(
        "--jacobian",
        action="store_true",
        help="write J and log J of the displacement, and J with the affine, as NIfTI",
    )
    command.add_argument(
        "--no-report",
        action="store_true",
        help="leave out report.html, which of a pair takes as long as a fast registration",
    )
    command.add_argument(
        "--no-composites",
        action="store_true",
        help="of a pair, leave out composite.h5, and the way back with its own",
    )
    command.set_defaults(run=commands.run_register, safe=manifests.whole_pairs)


def _add_evaluate(subparsers: Any) -> None:
    command = subparsers.add_parser("evaluate", help="measure all pairs of a manifest")
    command.add_argument("manifest", metavar="MANIFEST", help="a file as of register, or a folder")
    command.add_argument("-o", "--out", required=True, help="folder of the results")
    _add_method(command, "of --checkpoint as its run moved them, data.affine; else auto; ")
    command.add_argument(
        "--displacements",
        metavar="DIR",
        help="measure these: what `diffreg register MANIFEST` left, or files NAME.nii.gz",
    )
    command.add_argument(
        "--contrasts-differ",
        action="store_true",
        help="leave out relative SSD and SSIM, which compare intensities as they are",
    )
    command.add_argument("--seed", type=int, default=0, help="of the bootstrap (0)")
    command.set_defaults(run=manifests.run_evaluate, safe=manifests.whole_pairs, affine=None)


def _add_method(command: argparse.ArgumentParser, usual: str = "") -> None:
    """How a displacement is found."""
    command.add_argument(
        "--method",
        choices=("variational", "network"),
        help="how the displacement is found: optimised for the pair, or by a trained network "
        "(variational; network with --checkpoint)",
    )
    _add_network(command)
    add_minimised(command)
    command.add_argument(
        "--affine",
        choices=AFFINE,
        default="auto",
        help=f"the start, the moving image moved as a whole ({usual}auto: affine for volumes, and "
        "slices whose headers do not say that they are aligned; kept only where it fits better)",
    )
    command.add_argument(
        "--search", action="store_true", help="look for any turn, from hundreds of starts (24)"
    )
    _add_device(command)
    _add_several(command)
    command.add_argument(
        "--window",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="intensities that become 0 and 1 in both images, such as -160 240 for CT (the 0.5 and "
        "99.5 percentiles of what is compared)",
    )
    _add_fill(command)
    command.add_argument(
        "--guarantee",
        action="store_true",
        help="repair the displacement where it folds, and certify what is in the file",
    )


def _add_network(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--checkpoint",
        help="a trained network's file, or one that comes with diffreg: lunet-any (volumes), "
        "lunet-any-2d, lunet-cardiac-mr or lunet-mr-ct (slices)",
    )
    command.add_argument(
        "--trust",
        action="store_true",
        help="import, which runs code, a network of its author's that the checkpoint names",
    )
    command.add_argument(
        "--refine",
        type=int,
        default=0,
        metavar="N",
        help="go on from the network's displacement, by at most N steps of the variational method "
        "with the objective that the network was trained with, or where that was for any contrast, "
        "on voxels that it knows, with what suits the images (0)",
    )


def _add_several(command: argparse.ArgumentParser) -> None:
    """How the pairs of a manifest or a folder are found."""
    command.add_argument(
        "--by-slice",
        action="store_true",
        help="of a manifest, register volumes slice by slice, as a network of images does",
    )
    command.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="of a manifest, slices at once (8)"
    )
    command.add_argument(
        "--all-pairs",
        action="store_true",
        help="of a folder, every ordered pair of its images also where these are more than 50",
    )


def _finite(text: str) -> float:
    with suppress(ValueError):
        if math.isfinite(value := float(text)):
            return value
    raise argparse.ArgumentTypeError(f"must be a finite number, got {text!r}")


def _add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="what is computed on (auto: a GPU where the kernels run on one)",
    )


def _add_fill(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--fill",
        type=_finite,
        metavar="VALUE",
        help="intensity outside the moving image (0 where that is its most frequent value, else "
        "its smallest: a CT is filled with air; 0 for labels)",
    )


def _add_apply(subparsers: Any) -> None:
    command = subparsers.add_parser(
        "apply",
        help="sample images through a transform",
        usage="diffreg apply -t FILE [-t FILE ...] --fixed FIXED IMAGE -o OUT [options]\n"
        "       diffreg apply FOLDER IMAGE -o OUT [options]",
    )
    add_apply(command, _IMAGE)
    _add_device(command)
    _add_fill(command)


def _add_certify(subparsers: Any) -> None:
    command = subparsers.add_parser("certify", help="say whether a transform folds, and where")
    add_certify(command)
    _add_device(command)


def _add_info(subparsers: Any) -> None:
    command = subparsers.add_parser("info", help="say what is installed, or what a transform is")
    command.add_argument(
        "transform", metavar="FILE", nargs="?", help="a transform's file; else what is installed"
    )
    add_source(command)
    add_images(command)
    command.set_defaults(run=commands.run_info)


def _add_train(subparsers: Any) -> None:
    command = subparsers.add_parser("train", help="train a network")
    command.add_argument("config", metavar="CONFIG", nargs="?", help="TOML file")
    command.add_argument(
        "overrides", metavar="section.key=value", nargs="*", help="settings that replace the file's"
    )
    command.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint, if there is one"
    )
    command.add_argument(
        "--print-config",
        action="store_true",
        help="write all settings, those of CONFIG or the usual ones, as commented TOML; train not",
    )
    command.set_defaults(
        run=commands.run_train,
        more="overrides",
        safe=lambda options: "every checkpoint is whole; --resume goes on",
    )


def _add_bench(subparsers: Any) -> None:
    command = subparsers.add_parser(
        "bench", help="time operators, training and prediction against what else there is"
    )
    command.add_argument(
        "--quick", action="store_true", help="one shape, without torch.compile: about a minute"
    )
    command.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="what the operators run on (cpu)"
    )
    command.add_argument(
        "-o", "--out", help="folder for the results: JSON, Markdown, a plot; else only printed"
    )
    command.set_defaults(run=commands.run_bench)
