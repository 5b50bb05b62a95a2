"""Runs what docs/registration.md walks through, and writes what came into the page.

    python docs/registration.py

Each block of the page between <!-- NAME --> and <!-- end --> is what a function here returns.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import tempfile
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import diffreg
from diffreg.cli.main import main as command_line
from diffreg.data.geometry import Image
from diffreg.data.images import read_image, write_image
from diffreg.demo.measures import HEADS
from diffreg.demo.raw import MOVING, turn, write_raw_heads

PAGE = Path(__file__).with_suffix(".md")
SLICE = 8


def said(words: Sequence[str]) -> tuple[str, float]:
    """What a command of diffreg prints on both streams, and its CPU seconds."""
    stream = io.StringIO()
    start = time.process_time()
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        status = command_line(words)
    if status:
        raise RuntimeError(f"{' '.join(words)}: {stream.getvalue()}")
    return stream.getvalue(), time.process_time() - start


def shown(command: str, output: str, seconds: float, folder: Path) -> str:
    """A command and its output as the page has them."""
    text = wrapped(f"$ {command}\n{output}", folder)
    return f"```text\n{text}\n```\n\n{seconds:.0f} s of CPU time, on one thread.\n"


def wrapped(text: str, folder: Path) -> str:
    """Lines that fit the page, without the place of a folder."""
    lines = text.replace(f"{folder}/", "").splitlines()
    return "\n".join(textwrap.fill(line, 88, subsequent_indent="    ") for line in lines)


def how_far(result_affine: np.ndarray, true: np.ndarray, fixed: Image) -> str:
    """The mean distance of two maps over the head, in words."""
    inside = (fixed.data[0, 0] > 0).nonzero().numpy()
    places = np.zeros((4, len(inside)))
    places[: inside.shape[1]], places[3] = inside.T, 1
    world = fixed.affine @ places
    apart = np.linalg.norm(((result_affine - true) @ world)[:3], axis=0)
    return f"{apart.mean():.2f} mm"


def volumes(folder: Path, heads: tuple[Path, Path], iterations: int = 10) -> dict[str, str]:
    """Two raw heads, one turned by 20 degrees and shifted by 25 mm by its header."""
    moving, fixed = heads
    words = ["register", str(moving), str(fixed), "-o", str(folder / "out")]
    output, seconds = said(words)
    command = "diffreg register heads/colin27_turned.nii.gz heads/mni152.nii.gz -o out"
    found = {"volumes": shown(command, output, seconds, folder)}
    # Without the turn the search starts at the answer: that is what it should find again.
    turned = turn(read_image(MOVING))
    straight = read_image(moving).placed(turned)
    known = diffreg.register_affine(straight, read_image(fixed), similarity="mi")
    world = turned @ known.matrix
    result = diffreg.register(moving, fixed, iterations=iterations)
    found["python"] = f"```text\n{wrapped(repr(result), folder)}\n```\n"
    near = how_far(result.affine, world, read_image(fixed))
    found["affine"] = (
        f"The affine start ends {near} (mean over the head) from what it finds without the turn.\n"
    )
    return found


def slices(folder: Path) -> dict[str, str]:
    """The same on slices: one of each head, the moving one turned in its plane."""
    moving, fixed = (read_image(HEADS / f"{n}_t1.nii.gz", SLICE) for n in ("colin27", "mni152"))
    world = np.eye(4)
    c, s = np.cos(np.radians(20)), np.sin(np.radians(20))
    world[:2, :2], world[:2, 3] = [[c, -s], [s, c]], (20, -15)
    placed = Image(torch.zeros_like(fixed.data), world @ moving.affine, ndim_in_file=3)
    write_image(folder / "slice.nii.gz", moving.data, placed, np.uint8)
    write_image(folder / "template.nii.gz", fixed.data, fixed, np.uint8)
    names = "slice.nii.gz", "template.nii.gz"
    words = ["register", *(str(folder / n) for n in names), "-o", str(folder / "slices")]
    output, seconds = said(words)
    command = "diffreg register slice.nii.gz template.nii.gz -o slices"
    return {"slices": shown(command, output, seconds, folder)}


def written(text: str, blocks: dict[str, str]) -> str:
    """The page with its blocks replaced.

    Raises:
        KeyError: the page has a block that nothing here makes.
    """

    def block(found: re.Match[str]) -> str:
        return f"<!-- {found[1]} -->\n{blocks[found[1]]}<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        blocks = volumes(folder, write_raw_heads(folder / "heads")) | slices(folder)
    PAGE.write_text(written(PAGE.read_text(), blocks))


if __name__ == "__main__":
    main()
