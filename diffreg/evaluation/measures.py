"""Every metric that the files of a pair allow, as one record."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffreg import metrics
from diffreg.data.geometry import voxel_map
from diffreg.data.manifest import Pair
from diffreg.data.points import read_points
from diffreg.data.resampling import resample_to
from diffreg.data.transforms import read_displacement
from diffreg.fields import identity_grid
from diffreg.metrics import shared_labels
from diffreg.registration.cohort import read_labels
from diffreg.registration.files import check_grid
from diffreg.registration.result import Registration
from diffreg.system.files import FileWarning


class Measure(NamedTuple):
    """A metric: its name in files, what reports call it, its unit, and which values are better."""

    name: str
    title: str
    unit: str = ""
    better: str | None = None  # "higher", "lower" or None
    paired: bool = True  # known before and after


_KNOWN = [
    Measure("ncc", "NCC", "", "higher"),
    Measure("ssim", "SSIM", "", "higher"),
    Measure("relative_ssd", "relative SSD", "", "lower"),
    Measure("mutual_information", "mutual information", "nats", "higher"),
    Measure("normalized_mutual_information", "normalised mutual information", "", "higher"),
    Measure("dice", "Dice", "", "higher"),
    Measure("hd95", "HD95", "mm", "lower"),
    Measure("assd", "ASSD", "mm", "lower"),
    Measure("missing_labels", "labels lost", "", "lower"),
    Measure("tre", "TRE", "mm", "lower"),
    Measure("end_point_error", "end-point error", "mm", "lower"),
    Measure("min_determinant", "smallest determinant", "", None, False),
    Measure("max_determinant", "largest determinant", "", None, False),
    Measure("folded_percent", "folded cells", "%", "lower", False),
    Measure("sd_log_j", "SDlogJ", "", "lower", False),
    Measure("sd_log_j_learn2reg", "SDlogJ as Learn2Reg", "", "lower", False),
    Measure("inverse_consistency", "inverse consistency", "mm", "lower", False),
    Measure("seconds", "time", "s", "lower", False),
]


def measures_of(records: list[dict[str, Any]]) -> list[Measure]:
    """The metrics that any record has, in a fixed order; labels one by one after their mean."""
    names = {name for record in records for name in record}
    found = []
    for measure in _KNOWN:
        ends = ("_before", "_after") if measure.paired else ("",)
        if any(measure.name + end in names for end in ends):
            found.append(measure)
        prefix = f"{measure.name}_label_"
        labels = {
            name[len(prefix) :].rpartition("_")[0] for name in names if name.startswith(prefix)
        }
        if len(labels) > 1:  # the mean of one label is that label
            found += [
                measure._replace(name=prefix + label, title=f"{measure.title}, label {label}")
                for label in sorted(labels, key=int)
            ]
    return found


def measure_pair(pair: Pair, result: Registration, one_contrast: bool = True) -> dict[str, Any]:
    """All metrics of math.md section 8 that a pair's files allow.

    Args:
        pair: gives the labels, points and true displacement.
        result: the registration, without or with its own metrics.
        one_contrast: whether intensities can be compared: relative SSD and SSIM.

    Returns:
        name -> number; `<metric>_before` and `<metric>_after` where a metric is known without the
        registration too.

    Raises:
        FileNotFoundError, ValueError: labels, points or a true displacement that do not fit.

    Example: `measure_pair(pair, register(moving, fixed))["dice_after"]`
    """
    record: dict[str, Any] = {}
    still = result.displacement * 0
    for when, u in (("before", still), ("after", result.displacement)):
        values = _intensities(result, when, one_contrast)
        values |= _labels(pair, result, u)
        values |= _points(pair, result, u)
        if pair.true_displacement is not None:
            true, grid = read_displacement(pair.true_displacement)
            check_grid(grid, result.fixed)
            whole = whole_displacement(result, u)
            values["end_point_error"] = metrics.end_point_error(whole, true, result.fixed.spacing)
        record |= {f"{name}_{when}": value for name, value in values.items()}
    if not record.get("missing_labels_before") and not record.get("missing_labels_after"):
        record = {k: v for k, v in record.items() if not k.startswith("missing_labels")}
    record |= metrics.folding(result.displacement)
    record["sd_log_j"] = metrics.sd_log_jacobian(result.displacement)
    record["sd_log_j_learn2reg"] = metrics.sd_log_jacobian_learn2reg(result.displacement)
    if isinstance(result.metrics.get("inverse_consistency_mm"), float):
        record["inverse_consistency"] = result.metrics["inverse_consistency_mm"]
    if np.isfinite(result.seconds):
        record["seconds"] = result.seconds
    return record


def whole_displacement(result: Registration, displacement: Tensor) -> Tensor:
    """Displacement and affine map as one.

    p + whole(p) lies, by the header that the moving image came with, where the affine map leads
    p + u(p).

    Args:
        result: gives the map.
        displacement: (1, D, *S) u, fixed voxels, such as the result's.

    Returns:
        (1, D, *S), fixed voxels.

    Example: `whole_displacement(result, result.displacement)`
    """
    if np.array_equal(result.affine, np.eye(4)):
        return displacement
    size, dimensions = result.fixed.shape, len(result.fixed.shape)
    given, placed = (
        np.vstack([voxel_map(image, result.fixed), np.eye(dimensions + 1)[-1:]])
        for image in (result.prepared.as_given, result.moving)
    )
    matrix = torch.from_numpy(np.linalg.solve(given, placed)[:dimensions])
    places = identity_grid(size, torch.float64)[0] + displacement[0].to(torch.float64)
    there = torch.tensordot(matrix[:, :-1], places, 1)
    there += matrix[:, -1].reshape(-1, *[1] * dimensions) - identity_grid(size, torch.float64)[0]
    return there[None]


def _intensities(result: Registration, when: str, one_contrast: bool) -> dict[str, float]:
    """Similarities of the normalised images, inside the mask."""
    moving, after, fixed, mask = result.compared
    image = moving if when == "before" else after
    binned: dict[str, Any] = {"mask": mask, "moving": moving}
    values = {
        "ncc": metrics.ncc(image, fixed, mask),
        "mutual_information": metrics.mutual_information(image, fixed, **binned),
        "normalized_mutual_information": metrics.normalized_mutual_information(
            image, fixed, **binned
        ),
    }
    if one_contrast:
        values["ssim"] = metrics.structural_similarity(image, fixed, mask)
        values["relative_ssd"] = metrics.relative_ssd(image, fixed, moving, mask)
    return values


def _labels(pair: Pair, result: Registration, displacement: Tensor) -> dict[str, float]:
    """Overlap and surface distances of each label that both originals have, and their means.

    A label that the warp lost overlaps by 0 and has no surface: distances are means over the labels
    that are there, and how many are not stands beside them.
    """
    maps = read_labels(pair)
    if maps is None:
        return {}
    fixed, moving = result.fixed, maps[0].placed(result.affine)
    warped = resample_to(moving, fixed, displacement, interpolation="nearest")
    there = resample_to(maps[1], fixed, interpolation="nearest")
    labels = shared_labels(maps[0].data, there)
    if not labels:
        warnings.warn(
            f"{pair.name}: the labels of the two images have none in common but 0, so that there "
            "is no Dice of them",
            FileWarning,
            stacklevel=2,
        )
    distances = metrics.surface_distances(warped, there, fixed.spacing, labels)
    found: dict[str, dict[int, float]] = {"dice": metrics.dice(warped, there, labels)}
    for name in ("hd95", "assd"):
        found[name] = {label: both[name] for label, both in distances.items()}
    values = {"missing_labels": float(sum(np.isnan(v) for v in found["hd95"].values()))}
    for name, by_label in found.items():
        numbers = [value for value in by_label.values() if np.isfinite(value)]
        values[name] = float(np.mean(numbers)) if numbers else float("nan")
        values |= {f"{name}_label_{label}": value for label, value in by_label.items()}
    return values


def _points(pair: Pair, result: Registration, displacement: Tensor) -> dict[str, float]:
    """The mean distance of the points, mm."""
    if pair.fixed_points is None or pair.moving_points is None:
        return {}
    fixed, moving = read_points(pair.fixed_points), read_points(pair.moving_points)
    try:
        errors = metrics.target_registration_error(
            displacement,
            fixed,
            moving,
            voxel_map(result.moving, result.fixed),
            result.prepared.as_given.grid.axes,
        )
    except ValueError as error:
        raise ValueError(f"{pair.fixed_points} and {pair.moving_points}: {error}") from None
    return {"tre": float(errors.mean())}
