"""The page of one registered pair: warnings, fit, folding, numbers, and how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from diffreg.data.geometry import Image, display_orientation
from diffreg.registration.outlines import Outlines
from diffreg.registration.provenance import in_words
from diffreg.registration.result import Registration
from diffreg.report.first_screen import LARGEST, Said, fit_sentence
from diffreg.report.panels import PairView
from diffreg.report.table import shown

# Similarities, in a sentence, and on the first screen, where plain words come before the term.
TITLES = {
    "ncc": "NCC",
    "mutual_information": "mutual information (nats)",
    "relative_ssd": "relative SSD",
}
IN_WORDS = {
    "ncc": "how much the images agree (NCC)",
    "mutual_information": "how much one image tells of the other (mutual information, nats)",
    "relative_ssd": "what is left of their squared difference (relative SSD)",
    "dice": "how much labels overlap (mean Dice)",
    "landmarks": "how far the landmarks are apart (mean TRE, mm)",
}


def write_pair_page(
    result: Registration,
    path: Path,
    credits: Sequence[str] = (),
    outlines: Outlines | None = None,
) -> None:
    """Write the report of one pair.

    Args:
        result: its displacement as in the file, its metrics with the determinants of that.
        path: the HTML file; its folder must exist.
        credits: lines at the foot.
        outlines: labels to draw; of slices none are drawn.
    """
    from diffreg.report.html import write_report  # needs matplotlib

    before, after = result.metrics["before"], result.metrics["after"]
    verdict: list[tuple[str, Any]] = [
        (IN_WORDS[name], (before[name], after[name])) for name in before
    ]
    verdict += [
        *_overlap(result),
        *_landmarks(result),
        *_reach(result),
        (LARGEST, result.metrics["max_determinant"]),
        ("time", duration(result.seconds)),
        *_refinement(result),
        *_guarantee(result),
    ]
    title = f"{_short(result.moving)} to {_short(result.fixed)}"
    write_report(
        *(path, title, verdict, [view(result, title, dict(verdict), outlines)]),
        notes=_notes(result),
        credits=credits,
        fit=_fit(result),
        warnings=warnings_in(result.metrics),
        origin=in_words(result.metrics),
    )


def warnings_in(metrics: Mapping[str, Any]) -> list[str]:
    """What metrics.json warns of, one sentence each."""
    return [str(warning) for warning in metrics.get("warnings") or ()]


def _fit(result: Registration) -> Said:
    """By NCC within a modality, else by mutual information, on the voxels that are compared."""
    before, after = result.metrics["before"], result.metrics["after"]
    name = "ncc" if "relative_ssd" in before else "mutual_information"
    good, sentence = fit_sentence(TITLES[name], before.get(name), after.get(name))
    share = float(result.mask.mean())
    where = "all voxels" if share == 1 else f"the {100 * share:.3g} % of voxels that are compared"
    started = not np.array_equal(result.affine, np.eye(4))
    since = " (before: by the affine start alone)" if started else ""
    return good, f"{sentence}, on {where}{since}"


def _reach(result: Registration) -> list[tuple[str, Any]]:
    """How far voxels move; an image without a place in space has no millimetres."""
    if "displacement_mm" not in result.metrics:
        return []
    mean, largest = (shown(result.metrics["displacement_mm"][name]) for name in ("mean", "max"))
    unit = "pixels" if result.fixed.kind == "png" else "mm"
    return [(f"how far voxels move, mean and largest (|u|, {unit})", f"{mean}, {largest}")]


def _overlap(result: Registration) -> list[tuple[str, Any]]:
    """How well labels overlap, where they were given."""
    found = result.metrics.get("dice")
    return [] if found is None else [(IN_WORDS["dice"], (found["before"], found["after"]))]


def _landmarks(result: Registration) -> list[tuple[str, Any]]:
    """How far the points that took part are apart, where there were some."""
    found = result.metrics.get("landmarks")
    if found is None:
        return []
    return [(IN_WORDS["landmarks"], (found["before_mm"]["mean"], found["after_mm"]["mean"]))]


def _refinement(result: Registration) -> list[tuple[str, Any]]:
    """What the steps from the network's displacement did."""
    if "refinement" not in result.metrics:
        return []
    steps, before, after = result.metrics["refinement"].values()
    return [(f"what is minimised (objective, refined by at most {steps} steps)", (before, after))]


def _guarantee(result: Registration) -> list[tuple[str, Any]]:
    """What is certified, and what that took."""
    found = result.metrics
    said = []
    if "certificate" in found:
        said.append(("what the map is certified to be", found["certificate"]["verdict"]))
    if "repair" in found:
        moved, far = found["repair"]["moved_voxels"], found["repair"]["largest_move_voxels"]
        took = f"{moved} voxels moved, by at most {far:.2g}" if moved else "nothing to do"
        said.append(("repair", took))
    return said


def view(
    result: Registration,
    title: str,
    metrics: dict[str, Any],
    outlines: Outlines | None = None,
) -> PairView:
    """A registration as the report draws it.

    Args:
        result: the registration.
        title: what the pair is called.
        metrics: name -> number, text, or (before, after).
        outlines: labels to draw.

    Example: `view(register(moving, fixed), "a to b", {})`
    """
    return PairView(
        title,
        moving=_array(result.moving_on_fixed),
        fixed=_array(result.fixed.data),
        warped=_array(result.values),
        displacement=result.displacement[0].numpy(),
        spacing=result.fixed.spacing,
        **_upright(result.fixed),
        metrics=metrics,
        mask=None if bool(result.mask.all()) else _array(result.mask),
        **_labels(outlines),
    )


def _labels(outlines: Outlines | None) -> dict[str, Any]:
    if outlines is None:
        return {}
    return {
        "moving_labels": _array(outlines.moving),
        "warped_labels": _array(outlines.warped),
        "fixed_labels": _array(outlines.fixed),
    }


def _upright(fixed: Image) -> dict[str, Any]:
    """How a slice is turned, or the planes of a volume."""
    if len(fixed.shape) == 3:
        return {"affine": None if fixed.kind == "npz" else fixed.affine}
    return {"display": display_orientation(fixed.affine, fixed.kind)}


def duration(seconds: float) -> str:
    """A time in words: milliseconds below a second.

    Example:
        >>> from diffreg.registration.pair_page import duration
        >>> duration(0.0123), duration(12.123)
        ('12 ms', '12.1 s')
    """
    return f"{1000 * seconds:.0f} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def _notes(result: Registration) -> list[str]:
    """What the reader has to know about the numbers."""
    notes = [f"Method: {result.method}; similarity: {result.similarity}."]
    notes += [f"{line[0].upper()}{line[1:]}." for line in result.how]
    if not bool(result.mask.all()):
        notes.append("The images were compared inside the outline only.")
    if "certificate" in result.metrics:
        words = result.metrics["certificate"]["in_words"]
        notes.append(f"Certified for the displacement as its file holds it: {words}.")
    return notes


def _short(image: Image) -> str:
    return image.path.name if image.path else image.name


def _array(image: Tensor) -> np.ndarray:
    """(1, 1, *S) -> (*S)."""
    return image[0, 0].numpy()
