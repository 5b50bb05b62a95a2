"""What the demo measures: held-out pairs, five ways to register each, and the lines to be met."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from diffreg.data.images import Image, Normalization, read_image, resample_to
from diffreg.data.prepare import Prepared, prepare
from diffreg.losses import Objective
from diffreg.metrics import dice, folding, mutual_information, ncc, relative_ssd
from diffreg.registration import register_variational
from diffreg.report.table import Column, Row, Table

HEADS = Path(__file__).parent / "heads"
HELD_OUT = (3, 8, 13, 18)
METHODS = ("identity", "mean training field", "neighbour slice's field", "network", "variational")
# The T1 image of the same head: nothing that warps onto grey matter has seen it.
UNSEEN_T1 = {"mni152_gm": "mni152_t1"}

COLUMNS = {
    "ncc": Column("NCC", "", ".3f", "higher"),
    "relative_ssd": Column("relative SSD", "", ".3f", "lower"),
    "mutual_information": Column("MI", "nats", ".3f", "higher"),
    "dice": Column("brain Dice", "", ".3f", "higher"),
    "unseen_t1_ncc": Column("NCC with the unseen T1", "in the brain", ".3f", "higher"),
    "min_determinant": Column("smallest determinant", "", ".3f"),
    "folded_percent": Column("folded cells", "%", ".2f", "lower"),
    "milliseconds": Column("time", "ms", ".1f"),
}

# Figures by COLUMNS' names; those that mean nothing for a pair or a method are left out.
Measures = dict[str, float]


@dataclass(frozen=True)
class Case:
    """One slice of one head onto the same slice of the other.

    Args:
        moving, fixed: names of the files in the package, without their ending.
        slice_index: of both.
    """

    moving: str
    fixed: str
    slice_index: int

    def __str__(self) -> str:
        return f"{self.direction}, slice {self.slice_index}"

    @property
    def direction(self) -> str:
        return f"{self.moving} to {self.fixed}"

    @property
    def same_contrast(self) -> bool:
        return self.fixed not in UNSEEN_T1

    @cached_property
    def images(self) -> tuple[Image, Image]:
        """The moving and the fixed image as read."""
        return read_head(self.moving, self.slice_index), read_head(self.fixed, self.slice_index)

    @property
    def inputs(self) -> tuple[Tensor, Tensor]:
        """Both normalised, as a network takes them."""
        return self.prepared.moving_values, self.prepared.fixed_values

    @cached_property
    def prepared(self) -> Prepared:
        """The pair as `diffreg register` compares it."""
        return prepare(*self.images)

    def measure(self, displacement: Tensor, seconds: float | None = None) -> Measures:
        """All figures of a displacement (1, 2, *S)."""
        moving, warped, fixed, mask = self.prepared.compared(displacement)
        moving_t1, fixed_t1 = self._t1(self.moving), self._t1(self.fixed)
        brain = (fixed_t1.data > 0).to(torch.float32)
        masked = Image((moving_t1.data > 0).to(torch.uint8), moving_t1.affine)
        overlap = dice(resample_to(masked, fixed_t1, displacement, "nearest"), brain)[1]
        folds = folding(displacement)
        values = {
            "mutual_information": mutual_information(warped, fixed, mask=mask, moving=moving),
            "dice": overlap,
            "min_determinant": folds["min_determinant"],
            "folded_percent": folds["folded_percent"],
        }
        if self.same_contrast:
            values["ncc"] = ncc(warped, fixed, mask)
            values["relative_ssd"] = relative_ssd(warped, fixed, moving, mask)
        else:
            unseen = Normalization()(fixed_t1.data)
            values["unseen_t1_ncc"] = ncc(warped, unseen, brain * mask)
        if seconds is not None:
            values["milliseconds"] = 1000 * seconds
        return values

    def _t1(self, name: str) -> Image:
        return read_head(UNSEEN_T1.get(name, name), self.slice_index)


@cache
def read_head(name: str, slice_index: int) -> Image:
    """A slice of a head in the package."""
    return read_image(HEADS / f"{name}.nii.gz", slice_index)


def displacements(
    case: Case, network: nn.Module, training_slices: Sequence[int], similarity: str
) -> Iterator[tuple[str, Tensor, float | None]]:
    """Every method's displacement of a case, with the seconds that it took where that is known.

    Args:
        case: the pair.
        network: trained on other slices.
        training_slices: which ones; the mean of its predictions there knows nothing of the case.
        similarity: what the variational method minimises.

    Yields:
        The method, the displacement (1, 2, *S), and seconds or None.
    """
    moving, fixed = case.inputs
    yield METHODS[0], torch.zeros(1, 2, *fixed.shape[2:]), None
    others = [Case(case.moving, case.fixed, k) for k in training_slices]
    fields = [predict(network, other) for other in others]
    yield METHODS[1], torch.cat(fields).mean(0, keepdim=True), None
    yield METHODS[2], predict(network, Case(case.moving, case.fixed, case.slice_index + 1)), None
    yield METHODS[3], *timed(lambda: predict(network, case), repeats=5)
    objective = Objective(similarity)
    yield METHODS[4], *timed(lambda: register_variational(moving, fixed, objective))


def predict(network: nn.Module, case: Case) -> Tensor:
    """The network's displacement (1, 2, *S)."""
    with torch.no_grad():
        return network(*case.inputs)


def timed(function: Callable[[], Tensor], repeats: int = 1) -> tuple[Tensor, float]:
    """A result and the median of the seconds that it took."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return result, float(np.median(seconds))


def mean(several: Sequence[Measures]) -> Measures:
    """The mean of every figure; of the determinant the smallest."""
    return {
        name: float((min if name == "min_determinant" else np.mean)([m[name] for m in several]))
        for name in several[0]
        if all(name in measures for measures in several)
    }


class Target(NamedTuple):
    """A line that the demo has to meet, and whether it does."""

    text: str
    met: bool


def targets(means: dict[str, dict[str, Measures]], folded: int) -> list[Target]:
    """The lines to be met.

    Args:
        means: of the held-out pairs; direction -> method -> figures.
        folded: held-out pairs in which the network folds a cell.
    """
    lines = [Target(f"no folded cell in any held-out pair: {folded} with folds", folded == 0)]
    for direction, methods in means.items():
        before, after = methods["identity"], methods["network"]
        gain = after["dice"] - before["dice"]
        lines.append(_at_least(f"{direction}: brain Dice", gain, 0.015, "+.3f"))
        if "relative_ssd" in after:
            text = f"{direction}: relative SSD {after['relative_ssd']:.3f} <= 0.88"
            lines.append(Target(text, after["relative_ssd"] <= 0.88))
            decisive = {"relative_ssd": -1}
        else:
            gain = 100 * (after["mutual_information"] / before["mutual_information"] - 1)
            lines.append(_at_least(f"{direction}: MI in per cent", gain, 15, "+.0f"))
            gain = after["unseen_t1_ncc"] - before["unseen_t1_ncc"]
            lines.append(_at_least(f"{direction}: NCC with the unseen T1", gain, 0.08, "+.3f"))
            decisive = {"mutual_information": 1, "unseen_t1_ncc": 1}
        for other in METHODS[1:3]:
            better = all(
                sign * (after[name] - methods[other][name]) > 0 for name, sign in decisive.items()
            )
            names = " and ".join(COLUMNS[name].name for name in decisive)
            lines.append(Target(f"{direction}: better than the {other} by {names}", better))
    return lines


def _at_least(text: str, gain: float, wanted: float, form: str) -> Target:
    return Target(f"{text} {gain:{form}} >= {wanted:{form}}", gain >= wanted)


def table(groups: dict[str, dict[str, Measures]]) -> Table:
    """One group for each direction or pair, one row for each method."""
    rows = [
        Row(method, [measures.get(name) for name in COLUMNS], group)
        for group, methods in groups.items()
        for method, measures in methods.items()
    ]
    return Table(list(COLUMNS.values()), rows, label="held-out pairs")
