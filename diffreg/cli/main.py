"""The command line: `diffreg register | evaluate | apply | certify | ... | demo | bench | info`.

A user's mistake is one line on stderr and exit status 2; DIFFREG_DEBUG=1 shows where it was found.
What is odd about a file that is read all the same is one line, too, once.
What the commands do is in diffreg.cli.commands.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from diffreg import __version__
from diffreg._files import FULL
from diffreg.cli import commands, manifests
from diffreg.cli.apply import add_apply
from diffreg.cli.certify import add_certify
from diffreg.cli.export import add_export
from diffreg.cli.notices import warning_in_lines
from diffreg.cli.steps import add_images, add_source
from diffreg.cli.transforms import add_transforms
from diffreg.cli.variational import add_beside, add_minimised

AFFINE = ("auto", "none", "translation", "rigid", "similarity", "affine")
_IMAGE = (
    "NIfTI, MGH or PNG file, or file.npz:ARRAY; with diffreg[itk] .mha, .nrrd, .tif, .jpg or .dcm, "
    "or a folder with a DICOM series, folder:UID of several"
)
_GRACE = 5.0  # seconds in which a second signal is ignored: something is being put away


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: what follows `diffreg` on the command line; None: this process's.

    Returns:
        The exit status: 0, 2 for a user's mistake, 130 when interrupted, 143 when terminated.

    Example:
        >>> from diffreg.cli.main import main
        >>> main(["apply", "missing.nii.gz", "label.nii.gz", "-o", "out.nii.gz"])
        2
    """
    options = _options(arguments)
    for stream in (sys.stdout, sys.stderr):  # names of files may hold what has no letters there
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with _stopping(), warning_in_lines():
            return options.run(options)
    except KeyboardInterrupt as stopped:
        number = stopped.args[0] if stopped.args else signal.SIGINT
        word = "terminated" if number == signal.SIGTERM else "interrupted"
        print(f"diffreg: {word}; {options.safe(options)}", file=sys.stderr)
        return 128 + number
    except BrokenPipeError:  # `diffreg ... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, which not every system has
    except (ValueError, TypeError, OSError, ImportError, MemoryError, RuntimeError) as error:
        message = _message(error, options)
        if message is None or os.environ.get("DIFFREG_DEBUG"):
            raise
        print(f"diffreg: error: {message}", file=sys.stderr)
        return 2


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; what a command has several of may go on after an option."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    more = getattr(options, "more", "")
    if rest and (not more or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        setattr(options, more, [*getattr(options, more), *rest])
    return options


def _message(error: Exception, options: argparse.Namespace) -> str | None:
    """A user's mistake in one line; None for a fault of the program."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "allocate memory" in text or "out of memory" in text:
        return "there is not enough memory for images of this size"
    if isinstance(error, RuntimeError):
        return None
    if isinstance(error, OSError) and error.errno is not None and error.strerror is not None:
        out, name = str(getattr(options, "out", "")), str(error.filename or "")
        if error.errno in FULL:
            return f"{out}: {error.strerror.lower()}: no file was left half-written"
        place = out if out and (not name or f".{os.getpid()}-" in name) else name
        return f"{place}: {error.strerror.lower()}" if place else text
    return text or type(error).__name__


class _Stopped(KeyboardInterrupt):
    """A signal came.

    A class of its own: KeyboardInterrupt itself, raised while a library runs exec(), makes CPython
    end the process by SIGINT whatever exit status is asked for.
    """


@contextmanager
def _stopping() -> Iterator[None]:
    """Ctrl-C and SIGTERM both end the command through its `finally`s."""
    last = [-_GRACE]
    caught: list[int] = []
    again: list[threading.Timer] = []
    here = threading.get_ident()
    others = sys.unraisablehook

    def stop(number: int, frame: Any) -> None:
        caught.append(number)
        now = time.monotonic()
        if now - last[0] >= _GRACE:
            last[0] = now
            raise _Stopped(number)

    def swallowed(report: Any) -> None:
        """Python drops, with a trace, what a finalizer or a weak reference's callback raises."""
        if not isinstance(report.exc_value, _Stopped):
            return others(report)
        last[0] = -_GRACE
        number = report.exc_value.args[0]
        again.append(threading.Timer(0.01, signal.pthread_kill, (here, number)))
        again[-1].start()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    both = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in both}
    sys.unraisablehook = swallowed
    try:
        yield
        # A library may have swallowed the exception, or made another one of it.
        if caught:
            raise _Stopped(caught[0])
    except Exception as error:
        if caught:
            raise _Stopped(caught[0]) from error
        raise
    finally:
        sys.unraisablehook = others
        for timer in again:
            timer.cancel()
            timer.join()
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


class _Parser(argparse.ArgumentParser):
    """argparse, with its errors in our one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"diffreg: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="diffreg", description="Diffeomorphic registration of slices and volumes."
    )
    parser.add_argument("--version", action="version", version=f"diffreg {__version__}")
    parser.set_defaults(safe=lambda options: "no file is half-written")
    commands_ = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_register(commands_)
    _add_evaluate(commands_)
    _add_apply(commands_)
    _add_certify(commands_)
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
        help="of a pair, leave out report.html, which takes as long as a fast registration",
    )
    command.add_argument(
        "--no-composites",
        action="store_true",
        help="of a pair, leave out composite.h5, and the way back with its own",
    )
    command.set_defaults(run=commands.run_register, safe=manifests.whole_pairs)


def _add_evaluate(subparsers: Any) -> None:
    command = subparsers.add_parser("evaluate", help="measure all pairs of a manifest")
    command.add_argument(
        "manifest", metavar="MANIFEST", help=".csv, .toml, .json file, or a folder"
    )
    command.add_argument("-o", "--out", required=True, help="folder of the results")
    _add_method(command)
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
    command.set_defaults(run=manifests.run_evaluate, safe=manifests.whole_pairs)


def _add_method(command: argparse.ArgumentParser) -> None:
    """How a displacement is found."""
    command.add_argument("--method", choices=("variational", "network"))
    command.add_argument(
        "--checkpoint",
        help="a trained network's file, or lunet-cardiac-mr, which comes with diffreg",
    )
    command.add_argument(
        "--trust",
        action="store_true",
        help="import, which runs code, what the checkpoint names that does not come with diffreg: "
        "a network of its author's",
    )
    add_minimised(command)
    command.add_argument(
        "--affine",
        choices=AFFINE,
        default="auto",
        help="the start, the moving image moved as a whole (auto: affine for volumes, and for "
        "slices whose headers do not say that they are aligned; kept only where it fits better)",
    )
    command.add_argument(
        "--search", action="store_true", help="look for any turn, from hundreds of starts (24)"
    )
    _add_device(command)
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
    command.add_argument(
        "--refine",
        type=int,
        default=0,
        metavar="N",
        help="go on from the network's displacement, by at most N steps of the variational method "
        "with the objective that the network was trained with (0)",
    )
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
        help="what is computed on (auto: a GPU where there is one)",
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


if __name__ == "__main__":
    sys.exit(main())
