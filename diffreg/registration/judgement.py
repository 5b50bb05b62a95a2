"""Whether a result can be trusted: what it shows, against limits, each in a plain sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from diffreg.affine.start import Start
from diffreg.data.geometry import Image
from diffreg.data.voxels import Voxels, lengths_in_words
from diffreg.registration.result import Registration
from diffreg.registration.signs import NCC, Signs, signs_of
from diffreg.registration.unfolded import SMALLEST_DETERMINANT


class Agreement(NamedTuple):
    """Limits of a measure that is larger the better two images agree."""

    low: float  # what is below is too low
    good: float  # what is above needs no gain
    gained: float  # of what was missing to perfect agreement, the least


class Limits(NamedTuple):
    """What a result may show without a warning: the table that bench/warnings/study.py finds.

    Lengths are parts of the image's extent, the square root of its area.
    """

    # By definition.
    second_start: float = 0.05  # of agreement, that a second start must gain to count
    confirmed: float = 0.75  # of `apart`: a second start that ends nearer speaks for the result
    voxels: float = 3.0  # a length below so many is no sign, however small the image
    share: float = 0.5  # of the squared displacement, that its affine part must be to be named
    covered: float = 0.5  # of the fixed voxels, at least
    floor: float = 2e-3  # smallest determinant; the line search of the method stops at half of it
    # Found: 1.25 times what the worst of the good pairs shows, and twice that.
    apart: float = 0.0406
    moved: float = 0.0649
    affine: float = 0.0512
    led_out: float = 0.0851
    ncc: Agreement = Agreement(low=0.865, good=0.899, gained=0.311)
    information: Agreement = Agreement(low=1.08, good=1.12, gained=0.00829)


LIMITS = Limits()
# Of normalised mutual information in a mask of a volume, where no background agrees: half of what
# heads that fit have there beyond 1, 0.063 to 0.086; heads that do not, 0.019 at most.
LOW_IN_MASK = 1.031
# Beside the voxels that a network was trained on: how often as long along one axis, and how often
# as short. At twice a network loses an eighth and a sixth of what it gains, by longer ones nothing.
STRETCHED, FINER = 2.5, 2.0
# Of an affine start: degrees, and the factor of lengths.
FAR_TURN, FAR_SCALE = 45.0, 1.25


def judged(result: Registration, one_contrast: bool | None = None) -> Registration:
    """The result with its warnings among its metrics: sentences, none where all is well.

    Args:
        result: what was registered, or read from files; warnings that it has stay as they are.
        one_contrast: whether intensities can be compared; None: as its similarity has it.

    Example: `judged(result).metrics["warnings"]`
    """
    if "warnings" in result.metrics:
        return result
    warnings = warnings_of(result, one_contrast)
    return replace(result, metrics={**result.metrics, "warnings": warnings})


def warnings_of(result: Registration, one_contrast: bool | None = None) -> list[str]:
    """What speaks against a result, one plain sentence each.

    Args:
        result: with or without metrics.
        one_contrast: whether intensities can be compared; None: as its similarity has it.

    Example: `warnings_of(register(moving, fixed))`
    """
    png = result.fixed.kind == "png"
    signs = signs_of(result, one_contrast)
    warnings = _one_image(result.moving, result.fixed)
    warnings += sentences(signs, LIMITS, "pixels" if png else "mm").values()
    if warnings and png and result.moving.shape != result.fixed.shape:
        sizes = [" x ".join(map(str, image.shape)) for image in (result.moving, result.fixed)]
        warnings.append(
            f"PNG files say nothing of where they lie: these, {sizes[0]} and {sizes[1]} pixels, "
            "were laid corner on corner."
        )
    return warnings


def _one_image(moving: Image, fixed: Image) -> list[str]:
    """A file that was named twice, most likely."""
    if not np.array_equal(moving.affine, fixed.affine) or not torch.equal(moving.data, fixed.data):
        return []
    return ["Moving and fixed are one image, voxel by voxel at one place: a file named twice?"]


def started(result: Registration, start: Start) -> Registration:
    """The result with its start, and what speaks against that among its warnings.

    Args:
        result: what came of it, with its warnings.
        start: where it started.

    Example: `started(result, affine_start(pair)).start.matrix`
    """
    warnings = [*_turned(start), *_misled(result), *result.metrics["warnings"]]
    metrics = {**result.metrics, **start.metrics, "warnings": warnings}
    return replace(result, start=start, metrics=metrics)


def as_trained(result: Registration, voxels: Voxels | None) -> Registration:
    """The result of a network with a warning where it was trained on voxels quite unlike these.

    Args:
        result: what came of it, with its warnings.
        voxels: those that the network was trained on; None: not known.

    Example: `as_trained(result, Voxels((1.0, 1.0, 1.0))).warnings`
    """
    refined = result.method == "refined network"
    unlike = _unlike(result.fixed, voxels, refined)
    warnings = [*unlike, *result.metrics["warnings"]]
    return replace(result, metrics={**result.metrics, "warnings": warnings})


def knows(voxels: Voxels | None, fixed: Image) -> bool:
    """Whether a network that was trained on such voxels knows the fixed image's.

    Displacements are in voxels: of finer ones they are longer than what the network knows.

    Args:
        voxels: None: not known.
        fixed: the fixed image.

    Example: `knows(Voxels((1.0, 1.0, 1.0)), fixed)`
    """
    if fixed.kind != "nifti":  # without a place, and so without lengths
        return True
    voxels = voxels or Voxels()
    return voxels.stretched(fixed.spacing) <= STRETCHED and voxels.finer(fixed.spacing) <= FINER


def _unlike(fixed: Image, voxels: Voxels | None, refined: bool) -> list[str]:
    if knows(voxels, fixed):
        return []
    voxels = voxels or Voxels()
    in_part = ", for which the refinement makes up in part" if refined else ""
    return [
        f"The network was trained on voxels of {voxels.words}, and on these, of "
        f"{lengths_in_words(fixed.spacing)} mm, it finds less{in_part}: resample the fixed image "
        "to such voxels, or leave out the network (--checkpoint); the variational method takes any."
    ]


def _turned(start: Start) -> list[str]:
    """An affine start that turned or stretched the image far, unasked, is seldom right."""
    found = start.found
    if found is None or not found.kept or found.search:
        return []
    turn, _, scale = found.decomposition
    if turn <= FAR_TURN and 1 / FAR_SCALE <= scale <= FAR_SCALE:
        return []
    return [
        f"The affine start turned the moving image by {turn:.0f} degrees and changed its lengths "
        f"by {100 * (scale - 1):+.0f} %: look whether it lies so; --affine none, in "
        "Python affine='none', leaves it."
    ]


def _misled(result: Registration) -> list[str]:
    """A field that was given to begin with, and leads away from where its affine map does."""
    found = result.metrics.get("start")
    if found is None:
        return []
    with_field, alone = found["mutual_information"], found["mutual_information_of_affine"]
    if with_field >= alone:
        return []
    return [
        f"The start's field makes the images agree less, mutual information {with_field:.3f}, than "
        f"its affine map alone, {alone:.3f}: it may lead the other way, or its parts be in another "
        "order."
    ]


def sentences(signs: Signs, limits: Limits = LIMITS, unit: str = "mm") -> dict[str, str]:
    """A sentence for each sign that is beyond its limit, by the sign's name.

    Args:
        signs: what a result shows.
        limits: what it may show.
        unit: of lengths.

    Example: `sentences(signs_of(result)).get("moved")`
    """
    found = {
        "second start": _second_start(signs, limits, unit),
        "affine": _affine(signs, limits, unit),
        "moved": _moved(signs, limits, unit),
        "agreement": _agreement(signs, limits),
        "covered": _covered(signs, limits),
        "led out": _led_out(signs, limits),
        "floor": _floor(signs, limits),
    }
    return {name: sentence for name, sentence in found.items() if sentence}


def _second_start(signs: Signs, limits: Limits, unit: str) -> str:
    found = signs.elsewhere
    if found is None or not found.gain > limits.second_start:
        return ""
    if not found.apart > _far(signs, limits.apart, limits):
        return ""
    return (
        "The images were probably not aligned: their edges agree better after "
        f"{_move(found.turn, found.shift, unit)}, and this result is {found.apart:.0f} {unit} from "
        "there on average; align them first."
    )


def _far(signs: Signs, limit: float, limits: Limits) -> float:
    """A limit of a length."""
    return max(limit * signs.extent, limits.voxels * signs.voxel)


def _confirmed(signs: Signs, limits: Limits) -> bool:
    """Whether a second start moves the image as a whole, too, and to where the result has it."""
    found = signs.elsewhere
    if found is None or not found.gain > limits.second_start:
        return False
    return found.apart < limits.confirmed * _far(signs, limits.apart, limits)


def _affine(signs: Signs, limits: Limits, unit: str) -> str:
    motion = signs.motion
    if not (motion.share > limits.share and motion.length > _far(signs, limits.affine, limits)):
        return ""
    if _confirmed(signs, limits):
        return ""
    grown = f" and a change of lengths by {100 * (motion.growth - 1):+.0f} %"
    grown = grown if abs(motion.growth - 1) > 0.03 else ""
    return (
        f"The displacement is mostly ({100 * motion.share:.0f} %) one motion of the whole image, "
        f"{_move(motion.turn, motion.shift, unit)}{grown}: the images were probably not aligned; "
        "align them first."
    )


def _move(turn: float, shift: float, unit: str) -> str:
    parts = [f"a turn by {abs(turn):.0f} degrees"] if abs(turn) >= 0.5 else []
    parts += [f"a shift of {shift:.0f} {unit}"] if shift >= 0.5 or not parts else []
    return " and ".join(parts)


def _moved(signs: Signs, limits: Limits, unit: str) -> str:
    if not signs.moved > _far(signs, limits.moved, limits) or _confirmed(signs, limits):
        return ""
    return (
        f"The displacement is large: {signs.moved:.0f} {unit} on average, "
        f"{100 * signs.moved / signs.extent:.0f} % of the image's {signs.extent:.0f} {unit}."
    )


def _agreement(signs: Signs, limits: Limits) -> str:
    """Too low, or not good and hardly better than before."""
    within = signs.measure == NCC
    limit = limits.ncc if within else limits.information
    values = f"{signs.before:.3f} before, {signs.after:.3f} after"
    name = "NCC" if within else "normalised mutual information, from 1 to 2,"
    low = limit.low if within or not signs.in_mask else min(limit.low, LOW_IN_MASK)
    if not signs.after >= low:
        return f"The images hardly agree where they were compared: {name} {values}."
    if signs.after < limit.good and not signs.gained >= limit.gained:
        return f"The images agree hardly better than before: {name} {values}."
    return ""


def _covered(signs: Signs, limits: Limits) -> str:
    if signs.covered >= limits.covered:
        return ""
    return f"The moving image covers {100 * signs.covered:.0f} % of the fixed image only."


def _led_out(signs: Signs, limits: Limits) -> str:
    if not signs.led_out > limits.led_out:
        return ""
    return (
        f"The displacement leads {100 * signs.led_out:.0f} % of the voxels out of the moving "
        "image, where nothing is compared."
    )


def _floor(signs: Signs, limits: Limits) -> str:
    """A determinant that is not positive is a fold, of which other sentences speak."""
    if not 0 < signs.smallest_determinant < limits.floor:
        return ""
    return (
        f"The smallest determinant is {signs.smallest_determinant:.4f}: only the line search, "
        f"which stops at {SMALLEST_DETERMINANT:g}, kept the displacement from folding."
    )
