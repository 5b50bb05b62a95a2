"""One pair in, one result out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffreg import __version__
from diffreg._memory import returned_memory
from diffreg.data.geometry import Image
from diffreg.data.given import as_image, on_grid_of
from diffreg.data.images import Normalization
from diffreg.data.prepare import PairImages, Prepared, check_type, relative_spacing
from diffreg.data.resampling import check_fill
from diffreg.fields import make_diffeomorphic
from diffreg.losses import Objective
from diffreg.metrics import folding, inverse_consistency, mutual_information, ncc, relative_ssd
from diffreg.registration.contrast import Choice, choose
from diffreg.registration.devices import device_named
from diffreg.registration.judgement import judged, started
from diffreg.registration.predict import device_of, predict, refined
from diffreg.registration.provenance import described, device_in_words, provenance
from diffreg.registration.pyramid import possible_levels
from diffreg.registration.result import SAME_CONTRAST, Registration, registration_of
from diffreg.registration.returned import Returned
from diffreg.registration.start import affine_start
from diffreg.registration.variational import register_variational


@returned_memory()
def register(
    moving: Any,
    fixed: Any,
    network: nn.Module | None = None,
    objective: Objective | None = None,
    fixed_mask: Any = None,
    normalization: Normalization | None = None,
    similarity: str | None = "auto",
    levels: int = 3,
    iterations: int = 60,
    progress: Callable[..., Any] | None = None,
    both_ways: bool = False,
    guarantee: bool = False,
    refine: int = 0,
    moving_mask: Any = None,
    fill: float | None = None,
    affine: str | np.ndarray = "auto",
    device: str | torch.device = "auto",
    search: bool = False,
) -> Returned:
    """Find the map that brings the moving image onto the fixed one: an affine one, then a warp.

    Images are paths, numpy arrays, torch tensors, or images of diffreg, nibabel, SimpleITK or ants;
    `result.warped` comes back in kind. Where they lie in the world is what their headers say; an
    array has voxels of 1 mm (`diffreg.image(array, spacing=...)` says others).

    Both images are normalised to [0, 1] and the moving one is resampled on the fixed grid; where
    its field of view does not cover that grid, nothing is compared. Metrics before and after the
    warp are of the same voxels, where both ends are inside the moving image. What speaks against
    the result is among them, `metrics["warnings"]`, a list of sentences.

    Args:
        moving: the image to be warped, a slice or a volume.
        fixed: the image that stays; its grid is the result's.
        network: called (moving, fixed) -> displacement; None: the variational method.
        objective: what the variational method and the refinement minimise; None: as `similarity`
            says. Where its spacing is None, it is the voxels' proportions (`relative_spacing`).
        fixed_mask: voxels of the fixed image that count where it is > 0; through its header on any
            grid.
        normalization: as the network was trained with; None: the default percentiles.
        similarity: of the variational method: "auto", "mi" where the contrasts differ and else the
            preset "default" (`diffreg.registration.contrast`), or one of
            `diffreg.losses.SIMILARITIES`; with a network, what it was trained with, if known.
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
        affine: the start: "none", "translation", "rigid", "similarity" or "affine"
            (`diffreg.register_affine`); "auto": affine for volumes, and for slices whose headers do
            not say that they are aligned; or a map that is known, (4, 4), RAS mm, from the fixed
            image's space to the moving one's.
        device: of the variational method: "cpu", "cuda", or "auto", a GPU where torch sees one. A
            network, and steps from its displacement, run where its parameters are.
        search: look for turns by more than some 30 degrees as well, which takes longer.

    Returns:
        The registration.

    Raises:
        TypeError: an argument of another type.
        ValueError: the images share no plane, no voxel or no contrast, a mask is empty, there is no
            network to refine, or an option that does not fit.

    Example:
        >>> import numpy as np
        >>> import diffreg
        >>> x = np.arange(16.0)
        >>> blob = lambda at: np.exp(-((x[:, None] - at) ** 2 + (x - 8) ** 2) / 18)
        >>> result = diffreg.register(blob(9), blob(7), levels=1, iterations=10)
        >>> type(result.warped).__name__, result.metrics["folded_percent"]
        ('ndarray', 0.0)
    """
    _check_options(network, objective, similarity, refine)
    _check_settings(levels, iterations, both_ways, guarantee, fill, progress)
    pair = _images(moving, fixed, fixed_mask, moving_mask)
    place = device_named(device)
    if isinstance(affine, str) and affine == "auto" and not _have_places(moving, fixed):
        affine = "affine"
    start = affine_start(pair, affine, similarity, search)
    prepared = pair.prepared(normalization, start.matrix)
    ending = both_ways, guarantee, fill
    if network is not None:
        named = None if similarity == "auto" else similarity
        options = named, both_ways, guarantee, objective, refine, progress, fill
        (result,) = register_batch([prepared], network, *options)
        if isinstance(result, ValueError):
            raise result
    else:
        settings = levels, iterations, progress, place
        result = _by_descent(prepared, objective, similarity or "auto", settings, ending)
    return Returned.of(replace(started(result, start), given=moving))


def _check_options(network: Any, objective: Any, similarity: Any, refine: Any) -> None:
    if network is not None and not callable(network):
        raise TypeError(f"network must be a torch.nn.Module, got {type(network).__name__}")
    check_type("objective", objective, Objective, optional=True)
    check_type("refine", refine, int)
    if similarity not in (None, "auto") and network is None and objective is not None:
        raise ValueError(
            f"similarity and objective both say what is minimised: leave out {similarity!r}"
        )
    if refine and network is None:
        raise ValueError("refine needs a network, whose displacement is where it starts")


def _check_settings(
    levels: Any, iterations: Any, both_ways: Any, guarantee: Any, fill: Any, progress: Any
) -> None:
    for name, number in (("levels", levels), ("iterations", iterations)):
        check_type(name, number, int)
    for name, flag in (("both_ways", both_ways), ("guarantee", guarantee)):
        check_type(name, flag, bool)
    check_fill(fill)
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be callable or None, got {type(progress).__name__}")


def _images(moving: Any, fixed: Any, mask: Any, moving_mask: Any) -> PairImages:
    """What was given as images of diffreg."""

    def chosen(image: Image, name: str, value: Any) -> Image | None:
        return None if value is None else on_grid_of(image, name, value, label=True)

    images = as_image("moving", moving), as_image("fixed", fixed)
    masks = chosen(images[1], "fixed_mask", mask), chosen(images[0], "moving_mask", moving_mask)
    return PairImages(*images, *masks)


def _have_places(*given: Any) -> bool:
    """Whether both know where they lie; arrays do not."""
    return not any(isinstance(image, np.ndarray | Tensor) for image in given)


def _by_descent(
    prepared: Prepared,
    objective: Objective | None,
    similarity: str,
    settings: tuple[int, int, Callable[..., Any] | None, torch.device],
    ending: tuple[bool, bool, float | None],
) -> Registration:
    """Through the variational method."""
    (levels, iterations, progress, device), (both_ways, guarantee, fill) = settings, ending
    choice = Choice(objective, {}) if objective else choose(prepared, similarity)
    goal = _with_proportions(choice.objective, prepared.fixed)

    def solve(a: Tensor, b: Tensor, margin: Sequence[int] | None = None) -> Tensor:
        moving, fixed = a.to(device), b.to(device)
        weights = None if prepared.weights is None else prepared.weights.to(device)
        arguments = moving, fixed, goal, levels, iterations, weights, progress
        return register_variational(*arguments, margin=margin).to("cpu")

    start = time.perf_counter()
    around = prepared.surroundings()
    displacement = solve(around.values, prepared.fixed_values, around.margin)
    seconds = time.perf_counter() - start
    inverse = solve(prepared.fixed_values, prepared.moving_values) if both_ways else None
    ends, names = (displacement, inverse), "+".join(goal.similarity)
    result = _finished(prepared, *ends, "variational", names, seconds, guarantee, fill)
    used = possible_levels(prepared.fixed.shape, levels)
    result.metrics["objective"] = described(goal, levels=used, iterations=iterations)
    if device.type != "cpu":
        result.metrics["device"] = device_in_words(device)
    if choice.metrics:
        result.metrics["contrast"] = choice.metrics
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
            place = device_of(network)
            u, v, more, measured = refined(pair, u, v, goal, refine, progress, place)
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
