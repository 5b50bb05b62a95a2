"""Transforms as the command line names them: FILE, FILE,-1, [FILE,1], FORMAT:FILE, or a folder.

Nothing of torch is imported where the options are read: `diffreg --help` waits for none.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffreg.transforms import Chain, Transform

_BAD = 0.05  # voxels: an inverse that found its points is far below
_INVERTED = re.compile(r"\[(?P<file>.+?)\s*,\s*(?P<flag>[01])\]|(?P<other>.+),\s*(?P<power>-?1)")


STEP = (
    "a transform's file, of any tool, or a folder that `register` wrote; [FILE,1] or FILE,-1 "
    "inverts it, FORMAT:FILE names its format; may be given again, and a point passes the first "
    "one first, as with antsApplyTransforms"
)


def add_steps(command: argparse.ArgumentParser, required: bool = True) -> None:
    """-t, as often as there are transforms."""
    command.add_argument(
        *("-t", "--transform"),
        action="append",
        required=required,
        default=None if required else [],
        metavar="FILE",
        help=STEP,
    )


def add_start(command: argparse.ArgumentParser) -> None:
    """--start, as -t."""
    command.add_argument(
        "--start",
        action="append",
        default=[],
        metavar="FILE",
        help=f"what to begin with, in place of --affine: {STEP}; from a field the variational "
        "method goes on, on the images' own grid",
    )


def add_source(command: argparse.ArgumentParser) -> None:
    """--from."""
    command.add_argument(
        *("--from",),
        dest="source",
        metavar="FORMAT",
        help="of what is read, where the file leaves it open (docs/transforms.md lists them)",
    )


def add_images(command: argparse.ArgumentParser) -> None:
    """--fixed and --moving: the images between which what is read leads."""
    command.add_argument(
        "--fixed", metavar="IMAGE", help="the fixed image, where a format needs it"
    )
    command.add_argument("--moving", metavar="IMAGE", help="the moving image, where one needs it")


def add_written(command: argparse.ArgumentParser) -> None:
    """--to, and the images."""
    command.add_argument(
        "--to", metavar="FORMAT", help="of OUT, where its ending leaves it open or is not ITK's"
    )
    add_images(command)


def check_out(options: argparse.Namespace, *read: str) -> None:
    """Refuses a file to write that is one of those to read, before they are, which takes long."""
    from diffreg.system.files import require_output

    named = options.transform if isinstance(options.transform, list) else [options.transform]
    images = [*read, options.fixed, options.moving]
    require_output(options.out, chain(images, *map(files_of_step, named)))


def one_of(options: argparse.Namespace) -> Steps:
    """The transform of a command that takes one."""
    return read_steps([options.transform], options.fixed, options.moving, options.source)


@dataclass(frozen=True)
class Steps:
    """What was named.

    Args:
        chain: a point of the fixed image passes its first part first.
        names: of the steps, in that order.
        notes: what is to say of them: how well an inverse does.
        ends: to and from which image they lead.
    """

    chain: Chain
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    ends: tuple[str, str] = ("moving", "fixed")

    @property
    def order(self) -> str:
        """As people draw it: "moving <- affine.mat <- displacement.nii.gz <- fixed"."""
        return " <- ".join([self.ends[0], *reversed(self.names), self.ends[1]])

    def inverse(self) -> Steps:
        """The way back."""
        names = tuple(f"inverse of {name}" for name in reversed(self.names))
        chain = self.chain.inverse()
        notes = (*self.notes, *residuals(chain))
        return Steps(chain, names, notes, (self.ends[1], self.ends[0]))


def read_steps(
    named: Sequence[str], fixed: Any = None, moving: Any = None, format: str | None = None
) -> Steps:
    """Read what the command line names.

    Args:
        named: at least one.
        fixed, moving: images whose grids some formats need; of one that is inverted they are
            exchanged, since its file leads the other way.
        format: of those that name none.

    Raises:
        FileNotFoundError, ValueError: a file that is no transform, or that has no inverse.

    Example: `read_steps(["displacement.nii.gz", "[affine.mat,1]"]).order`
    """
    from diffreg.transforms import compose

    transforms, names, notes, ways = [], [], [], set()
    for text in named:
        place, named_format, inverted = parsed(text)
        between = (moving, fixed) if inverted else (fixed, moving)
        transform = _read(place, named_format or format, *between)
        name = Path(place).name or place
        if inverted:
            transform, name = transform.inverse(), f"inverse of {name}"
            notes += residuals(transform)
        transforms.append(transform)
        names.append(name)
        ways.add(inverted)
    ends = ("fixed", "moving") if ways == {True} else ("moving", "fixed")
    return Steps(compose(transforms), tuple(names), tuple(notes), ends)


def files_of_step(text: str) -> list[Path]:
    """The files that a transform is read from, without what else its name says; of a folder of
    `register` those that belong together."""
    from diffreg.registration import folders

    place = Path(parsed(text)[0])
    if not place.is_dir():
        return [place]
    ways = folders.DISPLACEMENT, folders.AFFINE, folders.COMPOSITE, folders.METRICS
    back = folders.INVERSE, folders.INVERSE_COMPOSITE
    return [place / name for name in (*ways, *back)]


def parsed(text: str) -> tuple[str, str | None, bool]:
    """The file, its format where it is named, and whether it is to be inverted.

    Example:
        >>> from diffreg.cli.steps import parsed
        >>> parsed("[a.mat, 1]"), parsed("fsl-flirt:a.mat,-1"), parsed("a.mat")
        (('a.mat', None, True), ('a.mat', 'fsl-flirt', True), ('a.mat', None, False))
    """
    from diffreg.transforms import FORMATS

    if Path(text).exists():  # whatever its name looks like
        return text, None, False
    inverted, format_ = False, None
    for _ in range(2):  # itk-text:[a.tfm,1] as well as [itk-text:a.tfm,1]
        found = _INVERTED.fullmatch(text)
        if found:
            text = found["file"] or found["other"]
            inverted = found["flag"] == "1" or found["power"] == "-1"
        head, colon, rest = text.partition(":")
        if colon and head in FORMATS:
            text, format_ = rest, head
    return text, format_, inverted


def _read(place: str, format_: str | None, fixed: Any, moving: Any) -> Transform:
    if Path(place).is_dir():
        from diffreg.registration.files import read_transform

        if format_ is not None:
            raise ValueError(f"{place} is a folder of register, which has no format {format_}")
        return read_transform(place)
    from diffreg.transforms import FORMATS, read

    head, colon, rest = place.partition(":")
    if colon and not Path(place).exists() and Path(rest).exists():
        raise ValueError(f"{head!r} is no format: one of {', '.join(FORMATS)} is needed")
    return read(place, format_, fixed=fixed, moving=moving)


def residuals(transform: Transform) -> list[str]:
    """How well the inverses of fields do; what did not come to an end is a warning."""
    lines = []
    from diffreg.transforms import Field

    for step in transform.steps:
        residual = step.residual if isinstance(step, Field) else None
        if isinstance(step, Field) and residual is not None:
            bad = residual.at_voxels > _BAD * min(step.grid.spacing)
            lines.append(
                f"{'diffreg: warning: ' if bad else ''}residual of the inverse: {residual}"
            )
    return lines
