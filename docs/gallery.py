"""Writes docs/gallery.md and its pictures: pairs that ship or are drawn, registered and drawn.

    python docs/gallery.py

Every pair is registered as it stands there, and what is said under its picture is what the program
says. A quarter of a minute on one core.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from PIL import Image

import diffreg
from diffreg.demo.raw import write_raw_heads
from diffreg.registration.pair_page import view
from diffreg.report.figures import readme_picture
from diffreg.system.atomic import replacing

ROOT = Path(__file__).parent
HEADS = "diffreg/demo/heads"
HEAD = """# A gallery

Pairs that ship with the package, or are drawn, and what the program says of each. From left to
right: moving, fixed and warped image; overlays before and after (the fixed image green, the other
one magenta, grey where they agree); and the mesh, blue where the displacement shrinks and amber
where it stretches. The page that `diffreg register` writes, `report.html`, has the same pictures
with a cursor, and all numbers: of the [first](gallery/heads.html) pair, and of the
[last](gallery/wrong_slice.html). `python docs/gallery.py` writes this page.
"""


class Pair(NamedTuple):
    """One of the gallery: its picture, what it shows, what it is registered with, its report."""

    picture: str
    title: str
    command: str
    images: Callable[[Path], tuple[Any, Any]]
    options: dict[str, Any]
    report: str | None = None  # kept of few: a megabyte each


def slices(moving: str, fixed: str, at: tuple[int, int]) -> Callable[[Path], tuple[Any, Any]]:
    def read(_: Path) -> tuple[Any, Any]:
        names = (f"{moving}.nii.gz", f"{fixed}.nii.gz")
        return tuple(
            diffreg.read_image(ROOT.parent / HEADS / name, slice_index=k)
            for name, k in zip(names, at, strict=True)
        )

    return read


def arrays(moving: Path, fixed: Path, at: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Slices without their places."""
    files = (nib.load(path).dataobj for path in (moving, fixed))
    first, second = (np.asarray(file)[..., k] for file, k in zip(files, at, strict=True))
    return first, second


def shapes(_: Path) -> tuple[np.ndarray, np.ndarray]:
    """A disc, and one with a notch."""
    y, x = np.mgrid[-1:1:96j, -1:1:96j]
    radius = np.hypot(y, x)
    disc = 1 / (1 + np.exp(30 * (radius - 0.55)))
    gap = 1 / (1 + np.exp(-30 * (x - 0.1))) / (1 + np.exp(30 * (abs(y) - 0.12)))
    return disc, (disc * (1 - gap)).clip(0, 1)


def commanded(moving: str, fixed: str, rest: str) -> str:
    return f"diffreg register {HEADS}/{moving}.nii.gz {HEADS}/{fixed}.nii.gz {rest} -o OUT"


T1S, GREY = ("colin27_t1", "mni152_t1"), ("colin27_t1", "mni152_gm")
PAIRS = (
    Pair(
        "demo.png",
        "Two heads on different grids, one turned by 20 degrees",
        "diffreg register demo/heads/colin27_turned.nii.gz demo/heads/mni152.nii.gz -o OUT",
        write_raw_heads,
        {},
        "gallery/heads.html",
    ),
    Pair(
        "gallery/one_contrast.png",
        "A slice of each, one contrast",
        commanded(*T1S, "--slice 10"),
        slices(*T1S, (10, 10)),
        {},
    ),
    Pair(
        "gallery/two_contrasts.png",
        "T1 to a map of grey matter: two contrasts",
        commanded(*GREY, "--slice 10"),
        slices(*GREY, (10, 10)),
        {},
    ),
    Pair(
        "gallery/shapes.png",
        "A disc to one with a notch, drawn",
        'diffreg.register(disc, notched, affine="none", similarity="ssd", guarantee=True)',
        shapes,
        {"affine": "none", "similarity": "ssd", "guarantee": True},
    ),
    Pair(
        "gallery/wrong_slice.png",
        "Two slices that do not belong together",
        'diffreg.register(colin27[..., 2], mni152[..., 18], affine="none")',
        lambda _: arrays(*(ROOT.parent / HEADS / f"{name}.nii.gz" for name in T1S), (2, 18)),
        {"affine": "none"},
        "gallery/wrong_slice.html",
    ),
)


def section(pair: Pair, folder: Path) -> str:
    """Registers and draws a pair; its part of the page."""
    result = diffreg.register(*pair.images(folder), **pair.options)
    with replacing(ROOT / pair.picture) as path:
        readme_picture(path, view(result, pair.title, {}))
        with Image.open(path) as picture:
            picture.convert("RGB").save(path, optimize=True)  # fewer colours would show: as bands
    if pair.report:
        out = folder / Path(pair.report).stem
        result.save(out)
        with replacing(ROOT / pair.report) as path:
            path.write_bytes((out / "report.html").read_bytes())
    verdict = result.verdict.partition(f", {result.seconds:.2f} s (")[0]
    said = [verdict, *(f"warning: {w}" for w in result.warnings)]
    lines = "\n".join(f"> {line}".rstrip() for line in "\n\n".join(said).splitlines())
    return (
        f"\n## {pair.title}\n\n    {pair.command}\n\n![{pair.title}]({pair.picture})\n\n{lines}\n"
    )


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    (ROOT / "gallery").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        page = HEAD + "".join(section(pair, Path(folder)) for pair in PAIRS)
    with replacing(ROOT / "gallery.md") as temporary:
        temporary.write_text(page)


if __name__ == "__main__":
    main()
