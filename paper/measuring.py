"""What is measured of a displacement, raw and guaranteed, and intervals over patients."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from images import Pairs
from torch import Tensor

from diffreg.fields import make_diffeomorphic
from diffreg.metrics import (
    dice,
    folding,
    mutual_information,
    ncc,
    relative_ssd,
    structural_similarity,
    surface_distances,
)
from diffreg.ops import warp

Row = dict[str, Any]
Setting = TypeVar("Setting")
DRAWS = 10_000


def measured(pairs: Pairs, fields: Tensor, one_contrast: bool = True) -> list[Row]:
    """One row a pair; what is measured of the guaranteed field has the ending _guaranteed.

    Args:
        pairs: P of them.
        fields: (P, 2, H, W).
        one_contrast: whether intensities can be compared.
    """
    rows = []
    for k in range(len(pairs)):
        pair, field = pairs.only([k]), fields[k : k + 1]
        begin = time.perf_counter()
        repair = make_diffeomorphic(field)
        repair_ms = 1e3 * (time.perf_counter() - begin)
        row = {"pair": pairs.names[k], "patient": pairs.patients[k]}
        row |= _of_field(pair, field, one_contrast) | folds(field)
        row["certificate"] = repair.before.verdict
        after = _of_field(pair, repair.displacement, one_contrast)
        row |= {f"{name}_guaranteed": value for name, value in after.items()}
        row["min_determinant_guaranteed"] = repair.certificate.smallest_determinant
        row |= {"moved_voxels": repair.moved_voxels, "largest_move": repair.largest_move}
        row["repair_ms"] = repair_ms
        rows.append(row)
    return rows


def _of_field(pair: Pairs, field: Tensor, one_contrast: bool) -> Row:
    warped = warp(pair.moving, field)
    row: Row = {}
    if one_contrast:
        row["ncc"] = ncc(warped, pair.fixed)
        row["relative_ssd"] = relative_ssd(warped, pair.fixed, pair.moving)
        row["ssim"] = structural_similarity(warped, pair.fixed)
    else:
        row["mi"] = mutual_information(warped, pair.fixed, mask=pair.mask, moving=pair.moving)
    if pair.fixed_label is not None and not torch.isnan(pair.moving_label).any():
        # Warped linearly, cut at a half: one way for every method.
        label = (warp(pair.moving_label, field) > 0.5).float()
        length = 1.0 if pair.spacing is None else pair.spacing[0]
        row["dice"] = dice(label, pair.fixed_label, [1])[1]
        row |= surface_distances(label, pair.fixed_label, (length, length), [1])[1]
    if pair.truth is not None:
        error = (field - pair.truth).norm(dim=1, keepdim=True)
        mask = torch.ones_like(error) if pair.mask is None else pair.mask
        row["end_point_error"] = float((error * mask).sum() / mask.sum())
        row["normal_error"] = _normal_error(pair, field, mask)
    return row


def _normal_error(pair: Pairs, field: Tensor, mask: Tensor) -> float:
    """The error across the fixed image's edges, all that an image without texture shows."""
    down, right = torch.gradient(pair.fixed[:, 0], dim=(1, 2))
    across = torch.stack([down, right], 1)
    across = across / across.norm(dim=1, keepdim=True).clamp(min=1e-6)
    error = ((field - pair.truth) * across).sum(1, keepdim=True).abs()
    return float((error * mask).sum() / mask.sum())


def folds(field: Tensor) -> Row:
    """Folded cells by all corners, and what forward and central differences would have reported."""
    exact = folding(field)
    u = field[0].double()
    forward = _determinant(u[:, 1:, :-1] - u[:, :-1, :-1], u[:, :-1, 1:] - u[:, :-1, :-1])
    central = _determinant(
        (u[:, 2:, 1:-1] - u[:, :-2, 1:-1]) / 2, (u[:, 1:-1, 2:] - u[:, 1:-1, :-2]) / 2
    )
    return {
        "folded_percent": exact["folded_percent"],
        "folded_percent_forward": 100 * float((forward <= 0).double().mean()),
        "folded_percent_central": 100 * float((central <= 0).double().mean()),
        "min_determinant": exact["min_determinant"],
        "max_determinant": exact["max_determinant"],
        "largest_displacement": float(field.norm(dim=1).max()),
    }


def _determinant(down: Tensor, right: Tensor) -> Tensor:
    return (1 + down[0]) * (1 + right[1]) - down[1] * right[0]


def patient_means(rows: Iterable[Row], name: str) -> dict[str, float]:
    """patient -> mean over its pairs that have it."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        value = row.get(name)
        if value is not None and np.isfinite(value):
            values[row["patient"]].append(value)
    return {patient: float(np.mean(each)) for patient, each in sorted(values.items())}


def chosen_on_others(
    search: Mapping[Setting, Sequence[Row]], patients: Sequence[str], name: str, sign: int
) -> dict[str, Setting]:
    """patient -> the setting that was best for the others.

    Args:
        search: setting -> the rows of all patients.
        patients: each is left out once.
        name: of the measure.
        sign: 1 where more is better, -1 where less is.
    """
    means = {setting: patient_means(rows, name) for setting, rows in search.items()}
    found = {}
    for patient in patients:
        worth = {
            setting: sign * np.mean([value for p, value in of.items() if p != patient])
            for setting, of in means.items()
        }
        found[patient] = max(worth, key=lambda setting: worth[setting])
    return found


def mean_and_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean and its 95 % bootstrap interval, NaN of fewer than two values."""
    sample = np.asarray(values, float)
    if sample.size < 2:
        return float(sample.mean()) if sample.size else np.nan, np.nan, np.nan
    drawn = np.random.default_rng(0).integers(sample.size, size=(DRAWS, sample.size))
    low, high = np.percentile(sample[drawn].mean(1), [2.5, 97.5])
    return float(sample.mean()), float(low), float(high)


def over_patients(rows: Sequence[Row], name: str) -> tuple[float, float, float]:
    """Mean over patients with its interval; a patient counts by the mean of its pairs."""
    return mean_and_interval(list(patient_means(rows, name).values()))


def difference(ours: Sequence[Row], theirs: Sequence[Row], name: str) -> tuple[float, float, float]:
    """Ours minus theirs on the pairs of both, patient by patient."""
    return mean_and_interval(list(by_patient(ours, theirs, name).values()))


def by_patient(ours: Sequence[Row], theirs: Sequence[Row], name: str) -> dict[str, float]:
    """patient -> ours minus theirs on the pairs, and any seeds, of both."""
    seeded = all("seed" in row for row in (*ours, *theirs))

    def key(row: Row) -> tuple[str, int]:
        return row["pair"], row["seed"] if seeded else 0

    common = {key(row) for row in ours} & {key(row) for row in theirs}
    a, b = (
        patient_means([row for row in rows if key(row) in common], name) for rows in (ours, theirs)
    )
    return {patient: a[patient] - b[patient] for patient in a if patient in b}


def share_of_before(rows: Sequence[Row], before: Sequence[Row], name: str) -> float:
    """What is left of a measure, of what the same pairs had before."""
    pairs = {row["pair"] for row in rows}
    same = [row for row in before if row["pair"] in pairs]
    return over_patients(rows, name)[0] / over_patients(same, name)[0]


def of_seed(rows: Iterable[Row], seed: int) -> list[Row]:
    """Those of one seed."""
    return [row for row in rows if row["seed"] == seed]


def as_guaranteed(rows: Iterable[Row]) -> list[Row]:
    """The rows as the guarantee leaves them."""
    ending = "_guaranteed"
    return [
        row
        | {name.removesuffix(ending): row[name] for name in row if name.endswith(ending)}
        | {"folded_percent": 0.0}
        for row in rows
    ]


def milliseconds(work: Callable[[], object], repeats: int = 15) -> float:
    """Median of some runs, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - begin))
    return float(np.median(times[1:]))


def milliseconds_in_turn(
    works: Mapping[Setting, Callable[[], object]], rounds: int = 5, repeats: int = 5
) -> dict[Setting, tuple[float, float, float]]:
    """Of several that take turns, for a machine that is not quiet.

    Args:
        works: name -> what is timed.
        rounds, repeats: how often each has its turn, and runs in it.

    Returns:
        name -> median, smallest and largest of its rounds.
    """
    times: dict[Setting, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(milliseconds(work, repeats))
    return {name: (float(np.median(t)), min(t), max(t)) for name, t in times.items()}
