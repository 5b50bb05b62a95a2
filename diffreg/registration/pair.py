"""One pair in, one result out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from diffreg import __version__
from diffreg.data.geometry import Image
from diffreg.data.images import Normalization
from diffreg.data.prepare import Prepared, check_type, prepare, relative_spacing
from diffreg.data.resampling import check_fill
from diffreg.fields import make_diffeomorphic
from diffreg.losses import Objective
from diffreg.metrics import folding, inverse_consistency, mutual_information, ncc, relative_ssd
from diffreg.registration.judgement import judged
from diffreg.registration.predict import device_of, predict, refined
from diffreg.registration.provenance import described, device_in_words, provenance
from diffreg.registration.pyramid import possible_levels
from diffreg.registration.result import SAME_CONTRAST, Registration, registration_of
from diffreg.registration.variational import register_variational


def register(
    moving: Image,
    fixed: Image,
    network: nn.Module | None = None,
    objective: Objective | None = None,
    mask: Image | None = None,
    normalization: Normalization | None = None,
    similarity: str | None = None,
    levels: int = 3,
    iterations: int = 60,
    progress: Callable[..., Any] | None = None,
    both_ways: bool = False,
    guarantee: bool = False,
    refine: int = 0,
    moving_mask: Image | None = None,
    fill: float | None = None,
) -> Registration:
    """Find the displacement that brings the moving image onto the fixed one.

    Both images are normalised to [0, 1] and the moving one is resampled on the fixed grid through
    both headers; where its field of view does not cover that grid, nothing is compared. Metrics
    before and after are of the same voxels, where both ends are inside the moving image. What
    speaks against the result is among them, `metrics["warnings"]`, a list of sentences.

    Args:
        moving: the image to be warped.
        fixed: the image that stays; its grid is the result's.
        network: called (moving, fixed) -> displacement; None: the variational method.
        objective: what the variational method and the refinement minimise; None:
            `Objective("ncc")`. Where its spacing is None, it is the voxels' proportions
            (`relative_spacing`).
        mask: voxels of the fixed image that count where it is > 0; through its header on any grid.
        normalization: as the network was trained with; None: the default percentiles.
        similarity: what the network was trained with, if known; says which metrics make sense.
            What the variational method minimises is `objective`.
        levels: of the variational method.
        iterations: of the variational method, on each level.
        progress: of the variational method and the refinement.
        both_ways: register fixed onto moving too, for the inverse consistency among the metrics.
        guarantee: repair the displacement where it folds (`diffreg.fields.make_diffeomorphic`).
        refine: at most so many steps of the variational method, from the network's displacement;
            before the guarantee. The result has no folded cell.
        moving_mask: voxels of the moving image that count where it is > 0; on any grid. For the
            method they lie where they are at the start, for the metrics where the result brings
            them as well.
        fill: the intensity of `warped` outside the moving image; None: 0 where that is the image's
            most frequent value, else its smallest.

    Returns:
        The registration.

    Raises:
        TypeError: an argument of another type.
        ValueError: the images share no plane, no voxel or no contrast, the mask is empty, there
            is no network to refine or to name a similarity of, or fill is not finite.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from diffreg.data.geometry import Image
        >>> from diffreg.registration import register
        >>> x = torch.arange(16.0).reshape(16, 1)
        >>> blob = lambda at: torch.exp(-((x - at) ** 2 + (x.T - 8) ** 2) / 18)[None, None]
        >>> pair = (Image(blob(at), np.eye(4)) for at in (9, 7))
        >>> register(*pair, levels=1, iterations=10).metrics["folded_percent"]
        0.0
    """
    if network is not None and not callable(network):
        raise TypeError(f"network must be a torch.nn.Module, got {type(network).__name__}")
    check_type("objective", objective, Objective, optional=True)
    for name, number in (("levels", levels), ("iterations", iterations), ("refine", refine)):
        check_type(name, number, int)
    for name, flag in (("both_ways", both_ways), ("guarantee", guarantee)):
        check_type(name, flag, bool)
    check_fill(fill)
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be callable or None, got {type(progress).__name__}")
    if network is None and similarity is not None:
        raise ValueError(
            "similarity says what a network was trained with, and there is none: for the "
            f"variational method give objective=Objective({similarity!r})"
        )
    prepared = prepare(moving, fixed, mask, normalization, moving_mask)
    if network is not None:
        options = similarity, both_ways, guarantee, objective, refine, progress, fill
        (result,) = register_batch([prepared], network, *options)
        if isinstance(result, ValueError):
            raise result
        return result
    if refine:
        raise ValueError("refine needs a network, whose displacement is where it starts")
    objective = _with_proportions(objective, fixed)

    def solve(a: Tensor, b: Tensor, margin: Sequence[int] | None = None) -> Tensor:
        settings = objective, levels, iterations, prepared.weights, progress
        return register_variational(a, b, *settings, margin=margin)

    start = time.perf_counter()
    around = prepared.surroundings()
    displacement = solve(around.values, prepared.fixed_values, around.margin)
    seconds = time.perf_counter() - start
    inverse = solve(prepared.fixed_values, prepared.moving_values) if both_ways else None
    names = "+".join(objective.similarity)
    ends = displacement, inverse
    result = _finished(prepared, *ends, "variational", names, seconds, guarantee, fill)
    used = possible_levels(fixed.shape, levels)
    result.metrics["objective"] = described(objective, levels=used, iterations=iterations)
    return result


def register_batch(
    pairs: Sequence[Prepared],
    network: nn.Module,
    similarity: str | None = None,
    both_ways: bool = False,
    guarantee: bool = False,
    objective: Objective | None = None,
    refine: int = 0,
    progress: Callable[..., Any] | None = None,
    fill: float | None = None,
) -> list[Registration | ValueError]:
    """Register several pairs through a network at once.

    Args:
        pairs: as `prepare` gives them, with the network's normalisation; of one size.
        network: called (moving, fixed) -> displacement.
        similarity: what the network was trained with, if known.
        both_ways, guarantee, objective, refine, progress, fill: as in `register`; pairs are refined
            one by one.

    Returns:
        The registration of each pair, its time an equal part of the batch's and its refinement; or
        the error, where the network's displacement is not finite.

    Raises:
        ValueError: the network gives no displacement of that size, or `refine` is negative.

    Example: `register_batch([prepare(moving, fixed)], network)[0].metrics`
    """
    if refine < 0:
        raise ValueError(f"refine must be at least 0, got {refine}")
    moving, fixed = (
        torch.cat([getattr(pair, name) for pair in pairs])
        for name in ("moving_values", "fixed_values")
    )
    start = time.perf_counter()
    there = predict(network, moving, fixed)
    seconds = (time.perf_counter() - start) / len(pairs)
    back = predict(network, fixed, moving) if both_ways else there
    names = similarity or "as trained"

    def finished(pair: Prepared, u: Tensor, v: Tensor | None) -> Registration:
        if not bool(torch.isfinite(u).all()):
            raise ValueError("the network's displacement holds values that are NaN or infinite")
        if not refine:
            result = _finished(pair, u, v, "network", names, seconds, guarantee, fill)
            origin = {} if objective is None else {"objective": described(objective)}
        else:
            goal = _with_proportions(objective, pair.fixed)
            u, v, more, measured = refined(pair, u, v, goal, refine, progress)
            in_all = seconds + more
            result = _finished(pair, u, v, "refined network", names, in_all, guarantee, fill)
            origin = {"refinement": measured, "objective": described(goal)}
        result.metrics.update(origin, device=device_in_words(device_of(network)))
        return result

    results: list[Registration | ValueError] = []
    for pair, u, v in zip(pairs, there.split(1), back.split(1), strict=True):
        try:
            results.append(finished(pair, u, v if both_ways else None))
        except ValueError as error:
            results.append(error)
    return results


def _with_proportions(objective: Objective | None, fixed: Image) -> Objective:
    """The objective, weighing derivatives by the voxels' proportions unless it has a spacing."""
    objective = objective or Objective("ncc")
    if objective.spacing is None:
        return objective.with_spacing(relative_spacing(fixed))
    return objective


def _finished(
    prepared: Prepared,
    displacement: Tensor,
    inverse: Tensor | None,
    method: str,
    similarity: str,
    seconds: float,
    guarantee: bool,
    fill: float | None,
) -> Registration:
    """The result of a displacement (1, D, *S), with its metrics."""
    displacement = displacement.detach().to("cpu", torch.float32)
    if guarantee and displacement.ndim == 5:
        raise ValueError("the guarantee is for slices so far: a volume's repair does not exist yet")
    repair = make_diffeomorphic(displacement) if guarantee else None
    if repair is not None:
        displacement = repair.displacement
    result = registration_of(prepared, displacement, method, similarity, seconds, {}, fill)
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
