"""The result of a displacement: repaired where that was asked for, measured and judged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffreg import __version__
from diffreg.data.prepare import Prepared
from diffreg.fields import make_diffeomorphic
from diffreg.metrics import folding, inverse_consistency, mutual_information, ncc, relative_ssd
from diffreg.registration.judgement import judged
from diffreg.registration.provenance import provenance
from diffreg.registration.result import SAME_CONTRAST, Registration, registration_of


class Found(NamedTuple):
    """How a displacement was found, as in `Registration`."""

    method: str
    similarity: str
    seconds: float


class Ending(NamedTuple):
    """What is made of a displacement, as `register` takes it."""

    both_ways: bool = False
    guarantee: bool = False
    fill: float | None = None


def finished(
    prepared: Prepared,
    displacement: Tensor,
    inverse: Tensor | None,
    found: Found,
    ending: Ending,
) -> Registration:
    """The result of a displacement, with its metrics and warnings.

    Args:
        prepared: the pair.
        displacement: (1, D, *S), fixed voxels.
        inverse: (1, D, *S), of fixed onto moving, for the inverse consistency; or None.
        found: how it was.
        ending: what is to be made of it.

    Raises:
        ValueError: the displacement leaves nothing to compare.

    Example: `finished(pair, u, None, Found("network", "ncc", 0.1), Ending()).metrics`
    """
    displacement = displacement.detach().to("cpu", torch.float32)
    repair = make_diffeomorphic(displacement) if ending.guarantee else None
    if repair is not None:
        displacement = repair.displacement
    result = registration_of(prepared, displacement, *found, {}, ending.fill)
    metrics = _metrics(result)
    if inverse is not None:
        back = inverse.detach().to("cpu", torch.float32)
        metrics["inverse_consistency_mm"] = inverse_consistency(
            displacement, back, prepared.fixed.spacing
        )
    if repair is not None:
        metrics["repair"] = {
            "before": repair.before.verdict,
            "moved_voxels": repair.moved_voxels,
            "largest_move_voxels": repair.largest_move,
            "mean_move_voxels": repair.mean_move,
        }
    return judged(replace(result, metrics=metrics))


def _metrics(result: Registration) -> dict[str, Any]:
    """What metrics.json holds; similarities of what `result.compared` has."""
    before, after, fixed, mask = result.compared
    values: dict[str, Any] = {
        "version": __version__,
        "moving": result.moving.name,
        "moving_slice": result.moving.slice_index,
        "moving_time": result.moving.time,
        "fixed": result.fixed.name,
        "fixed_slice": result.fixed.slice_index,
        "fixed_time": result.fixed.time,
        "method": result.method,
        "similarity": result.similarity,
        "shape": list(result.fixed.shape),
        "spacing_mm": list(result.fixed.spacing),
    }
    values |= {
        "compared_voxels": int(mask.sum()),
        "compared_percent": 100 * float(mask.mean()),
        "fill": result.fill,
    }
    for when, image in (("before", before), ("after", after)):
        values[when] = {
            "ncc": ncc(image, fixed, mask),
            "mutual_information": mutual_information(image, fixed, mask=mask, moving=before),
        }
        if set(result.similarity.split("+")) <= SAME_CONTRAST:
            values[when]["relative_ssd"] = relative_ssd(image, fixed, before, mask)
    values |= folding(result.displacement)
    return {**values, "seconds": result.seconds, **provenance(result)}
