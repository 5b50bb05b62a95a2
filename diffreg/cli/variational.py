"""The command line of the variational method: what is minimised, how long, and what goes with it.

Nothing of torch is imported where the options are read: `diffreg --help` waits for none.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffreg.data.images import Image
    from diffreg.registration.landmarks import Landmarks

SIMILARITIES = ("auto", "ssd", "ncc", "lncc", "pls", "smooth_pls", "ngf", "mi")
PRESETS = (
    "default",
    "slice",
    "volume",
    "multimodal",
    "multimodal_slice",
    "multimodal_volume",
    "paper",
)
# What --checkpoint leaves to none of these.
OPTIONS = ("preset", "similarity", "weights", "levels", "iterations", "composed_steps")


def add_minimised(command: argparse.ArgumentParser) -> None:
    """The options that `register`, `evaluate` and their manifests have."""
    command.add_argument(
        "--preset",
        metavar="NAME",
        help=f"of the variational method, a similarity with its weights: {', '.join(PRESETS)} "
        "(auto: slice or volume, where the contrasts differ with multimodal_ before it; multimodal "
        "is pls alone, as networks are trained)",
    )
    command.add_argument(
        "--similarity",
        type=_similarity,
        metavar="NAME|A=1,B=0.2",
        help=f"of the variational method, in place of the preset's: {', '.join(SIMILARITIES)}, or "
        "a mixture (auto: ncc and lncc; where the contrasts differ pls, lncc and some mi, or mi "
        "alone where hardly any edges are shared, and it is said why)",
    )
    command.add_argument(
        "--weights",
        type=_weights,
        metavar="S,D,B,J",
        help="of the variational method, in place of the preset's: of similarity, diffusion, "
        "bending and determinant, such as 60,1,30,3",
    )
    command.add_argument(
        "--levels",
        type=_whole,
        metavar="N",
        help="of the pyramid, at most, each half the size of the next (6)",
    )
    command.add_argument(
        "--iterations",
        type=_iterations,
        metavar="N|N,N,...",
        help="at most, on each level, or from coarse to fine, the last of the finest level and the "
        "first of all coarser ones (40,40,20)",
    )
    command.add_argument(
        "--composed-steps",
        type=_composed_steps,
        metavar="N|N,N,...",
        help="steps with which levels begin, told as iterations are, 0: none (100,50,10 of "
        "volumes, 0 of slices and from a start)",
    )


def add_beside(command: argparse.ArgumentParser) -> None:
    """The options of one pair: more images, and points."""
    command.add_argument(
        "--also",
        nargs=3,
        action="append",
        default=[],
        metavar=("MOVING", "FIXED", "WEIGHT"),
        help="a channel more of both sides, in the space of the two: its similarity counts WEIGHT "
        "times that of the pair; may be given again",
    )
    command.add_argument(
        "--landmarks",
        nargs=2,
        metavar=("CSV", "WEIGHT"),
        help="points that are to meet: columns fixed_x,fixed_y,fixed_z,moving_x,moving_y,moving_z, "
        "RAS mm; WEIGHT is of their mean squared distance, per mm^2",
    )


def minimised_of(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `register` that were given, checked before anything is read.

    Raises:
        ValueError: one that is none, or that goes with no network.
    """
    given = {name: getattr(options, name) for name in OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return {}
    if options.checkpoint is not None:
        name = next(iter(given))
        raise ValueError(
            f"--{name.replace('_', '-')} is of the variational method; a network keeps its own"
        )
    from diffreg.registration.goal import Goal
    from diffreg.registration.schedule import schedule_of

    parts = {name: given.get(name) for name in ("preset", "similarity", "weights")}
    Goal(**parts).checked()
    schedule_of(options.levels, options.iterations, options.composed_steps)
    return given


def beside_of(
    options: argparse.Namespace,
    fixed: Image,
    slices: tuple[int | None, ...],
    times: tuple[int | None, ...],
) -> dict[str, Any]:
    """The arguments of `register` for one pair: its other channels, and its landmarks.

    Args:
        options: the command line.
        fixed: the fixed image, in which the landmarks lie.
        slices, times: of the moving and of the fixed image.

    Raises:
        FileNotFoundError, ValueError: a file that is none or does not fit, or no weight.
    """
    found: dict[str, Any] = {}
    if options.also:
        found["also"] = [_channel(given, slices, times) for given in options.also]
    if options.landmarks is not None:
        found["landmarks"] = _landmarks(fixed, *options.landmarks)
    if found and options.checkpoint is not None:
        name = next(iter(found))
        raise ValueError(f"--{name} is of the variational method: leave it out with a network")
    return found


def _landmarks(fixed: Image, path: str, weight: str) -> Landmarks:
    from diffreg.data.points import read_landmarks
    from diffreg.registration.landmarks import Landmarks

    given = *read_landmarks(path), _weight("--landmarks", weight)
    try:
        return Landmarks.checked(given, fixed)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def in_words(options: argparse.Namespace) -> str:
    """What the variational method minimises, where no method was named."""
    preset = [] if options.preset is None else [f"the preset {options.preset}"]
    named = options.similarity
    if isinstance(named, Mapping):
        from diffreg.registration.provenance import mixture_in_words

        named = mixture_in_words(named)
    if named in (None, "auto"):
        return preset[0] if preset else "what suits the contrasts"
    return ", ".join([*preset, named])


def _channel(
    given: list[str], slices: tuple[int | None, ...], times: tuple[int | None, ...]
) -> tuple[Image, Image, float]:
    from diffreg.data.images import read_part

    moving, fixed = (
        read_part(path, index, time)
        for path, index, time in zip(given[:2], slices, times, strict=True)
    )
    return moving, fixed, _weight("--also", given[2])


def _weight(option: str, text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise ValueError(f"{option}: WEIGHT must be a finite number > 0, got {text!r}")
    return value


def _number(text: str) -> float:
    """NaN where it is none."""
    with suppress(ValueError):
        return float(text)
    return math.nan


def _similarity(text: str) -> str | dict[str, float]:
    """A name, or names with factors: ncc, or ncc=1,lncc=0.2."""
    parts = [part.strip().partition("=") for part in text.split(",")]
    names = [name for name, _, _ in parts]
    mixture = {name: _number(factor) if equals else 1.0 for name, equals, factor in parts}
    known = set(names) <= set(SIMILARITIES) and ("auto" not in names or text == "auto")
    if not known or len(mixture) < len(parts) or not all(map(math.isfinite, mixture.values())):
        raise argparse.ArgumentTypeError(
            f"must be one of {', '.join(SIMILARITIES)}, or a mixture such as ncc=1,lncc=0.2, got "
            f"{text!r}"
        )
    return text if text in SIMILARITIES else mixture


def _weights(text: str) -> tuple[float, ...]:
    weights = tuple(_number(part) for part in text.split(","))
    if len(weights) != 4 or not all(0 <= weight < math.inf for weight in weights):
        raise argparse.ArgumentTypeError(
            "must be four numbers >= 0, of similarity, diffusion, bending and determinant, such as "
            f"60,1,30,3, got {text!r}"
        )
    return weights


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return int(text)


def _iterations(text: str) -> int | tuple[int, ...]:
    return _of_levels(text, 1, "40,40,20")


def _composed_steps(text: str) -> int | tuple[int, ...]:
    return _of_levels(text, 0, "100,50,10")


def _of_levels(text: str, least: int, example: str) -> int | tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) >= least for part in parts):
        raise argparse.ArgumentTypeError(
            f"must be a whole number from {least}, or several, from coarse to fine, such as "
            f"{example}, got {text!r}"
        )
    numbers = tuple(int(part) for part in parts)
    return numbers if len(numbers) > 1 else numbers[0]
