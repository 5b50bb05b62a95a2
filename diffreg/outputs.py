"""The files that a registration leaves: warped image, displacement, metrics and report.

Called by diffreg.registration, which hands `write_registration` on, and by the command line.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from diffreg._files import replacing, require_folder
from diffreg.data.geometry import Image, display_orientation
from diffreg.data.images import write_image
from diffreg.data.transforms import read_displacement, write_displacement
from diffreg.metrics import folding

if TYPE_CHECKING:
    from diffreg.registration import Registration

_TITLES = {
    "ncc": "NCC",
    "mutual_information": "mutual information (nats)",
    "relative_ssd": "relative SSD",
}


def write_registration(result: Registration, out: str | Path) -> Registration:
    """Write the warped image, displacement.nii.gz, metrics.json and report.html.

    Each file appears whole or not at all. The determinants are those of the displacement as it is
    in its file.

    Args:
        result: what `register` returned.
        out: the folder; it is made where it does not exist.

    Returns:
        The result with the determinants of the file.

    Raises:
        ValueError: the folder cannot be written to.

    Example: `write_registration(register(moving, fixed), "out")`
    """
    out = check_output_folder(out)
    out.mkdir(exist_ok=True)
    if result.fixed.kind == "png":
        write_image(out / "warped.png", result.warped, result.fixed, result.moving.dtype)
    else:
        write_image(out / "warped.nii.gz", result.warped, result.fixed)
    write_displacement(out / "displacement.nii.gz", result.displacement, result.fixed)
    written, _ = read_displacement(out / "displacement.nii.gz")
    result = replace(result, metrics={**result.metrics, **folding(written)})
    with replacing(out / "metrics.json") as temporary:
        text = json.dumps(_finite(result.metrics), indent=2, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    _write_report(replace(result, displacement=written), out / "report.html")
    return result


def check_output_folder(out: str | Path) -> Path:
    """Refuse a folder for the results before any work is done; it may not exist, its parent must.

    Args:
        out: the folder.

    Returns:
        The folder.

    Raises:
        ValueError: it, or its parent where it does not exist, is no folder that can be written to.

    Example:
        >>> from diffreg.outputs import check_output_folder
        >>> check_output_folder("/").name
        ''
    """
    out = Path(out)
    if out.exists():
        return require_folder(out, "the output folder")
    require_folder(out.absolute().parent, "the folder to make the output folder in,")
    return out


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_report(result: Registration, path: Path) -> None:
    """The report of one pair."""
    from diffreg.report import PairView, write_report  # needs matplotlib

    before, after = result.metrics["before"], result.metrics["after"]
    verdict: list[tuple[str, Any]] = [
        (_TITLES[name], (before[name], after[name])) for name in before
    ]
    verdict += [
        ("smallest determinant", result.metrics["min_determinant"]),
        ("folded cells", f"{result.metrics['folded_percent']:.2g} %"),
        ("time", f"{1000 * result.seconds:.0f} ms"),
    ]
    title = f"{_short(result.moving)} to {_short(result.fixed)}"
    everywhere = bool(result.mask.all())
    pair = PairView(
        title,
        moving=_array(result.moving_on_fixed),
        fixed=_array(result.fixed.data),
        warped=_array(result.warped),
        displacement=result.displacement[0].numpy(),
        spacing=result.fixed.spacing,
        display=display_orientation(result.fixed.affine, result.fixed.kind),
        metrics=dict(verdict),
        mask=None if everywhere else _array(result.mask),
    )
    write_report(path, title, verdict, [pair], notes=_notes(result, everywhere))


def _notes(result: Registration, everywhere: bool) -> list[str]:
    """What the reader has to know about the numbers."""
    notes = [f"Method: {result.method}; similarity: {result.similarity}."]
    if not everywhere:
        notes.append("The images were compared inside the outline only.")
    return notes


def _short(image: Image) -> str:
    return image.path.name if image.path else image.name


def _array(image: Tensor) -> np.ndarray:
    """(1, 1, *S) -> (*S)."""
    return image[0, 0].numpy()
