"""One pair in, one result out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffreg.affine.start import affine_start
from diffreg.data.comparable import check_type
from diffreg.data.geometry import Image
from diffreg.data.given import as_pair, on_grid_of
from diffreg.data.images import Normalization
from diffreg.data.prepare import PairImages, Prepared
from diffreg.data.resampling import check_fill
from diffreg.data.voxels import Voxels
from diffreg.losses import Objective
from diffreg.registration.channels import Channel
from diffreg.registration.contrast import Choice, choose
from diffreg.registration.devices import device_named
from diffreg.registration.finished import Ending, Found, finished
from diffreg.registration.goal import Goal, with_proportions
from diffreg.registration.judgement import as_trained, knows, started
from diffreg.registration.known_start import known_start
from diffreg.registration.landmarks import Landmarks
from diffreg.registration.predict import device_of, predict, refined
from diffreg.registration.provenance import described, device_in_words
from diffreg.registration.result import Registration
from diffreg.registration.returned import Returned
from diffreg.registration.schedule import schedule_of
from diffreg.registration.solved import Search, solved
from diffreg.system.memory import returned_memory
from diffreg.system.torch_modes import usual_modes


@returned_memory()
@usual_modes()
def register(
    moving: Any,
    fixed: Any,
    network: nn.Module | None = None,
    objective: Objective | None = None,
    fixed_mask: Any = None,
    normalization: Normalization | None = None,
    similarity: str | Mapping[str, float] | None = "auto",
    levels: int | None = None,
    iterations: int | Sequence[int] | None = None,
    progress: Callable[..., Any] | None = None,
    both_ways: bool = False,
    guarantee: bool = False,
    refine: int = 0,
    moving_mask: Any = None,
    fill: float | None = None,
    affine: str | np.ndarray = "auto",
    device: str | torch.device = "auto",
    search: bool = False,
    preset: str | None = None,
    weights: Sequence[float] | None = None,
    also: Sequence[tuple[Any, Any, float]] = (),
    landmarks: tuple[Any, Any, float] | None = None,
    trained_on: Voxels | None = None,
    contrast_free: bool = False,
    start: Any = None,
    composed_steps: int | Sequence[int] | None = None,
) -> Returned:
    """Find the map that brings the moving image onto the fixed one: an affine one, then a warp.

    Images are paths, numpy arrays, torch tensors, or images of diffreg, nibabel, SimpleITK or ants;
    `result.warped` comes back in kind. Where they lie in the world is what their headers say; an
    array has voxels of 1 mm (`diffreg.image(array, spacing=...)` says others).

    Both images are normalised to [0, 1] and the moving one is resampled on the fixed grid; where
    its field of view does not cover that grid, nothing is compared. Metrics before and after the
    warp are of the same voxels, where both ends are inside the moving image. What speaks against
    the result is among them, `metrics["warnings"]`, a list of sentences.

    What is minimised is a preset's similarity with its weights, each replaced where it is given by
    itself; without a preset, as the contrasts say. `metrics["objective"]` has what was used.

    Args:
        moving: the image to be warped, a slice or a volume.
        fixed: the image that stays; its grid is the result's.
        network: called (moving, fixed) -> displacement; None: the variational method.
        objective: what the variational method and the refinement minimise, in place of `preset`,
            `similarity` and `weights`. Where its spacing is None, it is the voxels' proportions
            (`relative_spacing`).
        fixed_mask: voxels of the fixed image that count where it is > 0; through its header on any
            grid.
        normalization: as the network was trained with; None: the default percentiles.
        similarity: of the variational method: "auto", the preset's, else that of "slice" or
            "volume", with "multimodal_" before it where the contrasts differ, or "mi" where hardly
            any edges are shared (`diffreg.registration.contrast`); one of
            `diffreg.losses.SIMILARITIES`; or a mixture, {"ncc": 1, "lncc": 0.2}. With a network,
            what it was trained with, if known.
        levels: of the variational method, at most; None: 6. A small image bears fewer.
        iterations: of the variational method, at most: on each level, or several, from coarse to
            fine, the last of the finest level, the first of all coarser ones; None: (40, 40, 20),
            and 60 on each where there is one level, or two without composed steps.
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
        device: of the variational method: "cpu", "cuda", or "auto", a GPU where the kernels run on
            one. A network, and steps from its displacement, run where its parameters are.
        search: look for turns by more than some 30 degrees as well, which takes longer.
        preset: of the variational method, one of `diffreg.losses.PRESETS`.
        weights: of the variational method: similarity, diffusion, bending, determinant.
        also: more channels of both sides, (moving, fixed, weight) each: images in the space of the
            two, on any grid, such as another contrast, or a map of a structure or its probability.
            Each has the similarity of the objective to itself, times its weight, where the pair's
            own has 1. The affine start and the metrics are of the pair alone.
        landmarks: (fixed points, moving points, weight), (K, 3) each, RAS mm, (K, 2) of images
            without a third axis: weight times the mean squared distance in mm^2 is added to the
            objective. `metrics["landmarks"]` has the distances. The affine start knows none.
        trained_on: the voxels that the network knows, as `load_network` gives them: others are a
            warning.
        contrast_free: whether the network was trained for any contrast, as `load_network` says it:
            then the refinement, on voxels that it knows, minimises what suits the pair.
        start: a transform to begin with, from the fixed image's space to the moving one's, in place
            of `affine`: one of diffreg.transforms, its file, of any tool whose format the file
            tells, a folder of `register`, what it returned, or several, of which a point passes the
            first one first. Where it has a field, which is smoothed where it folds, the variational
            method goes on from there on the images' own grid alone, by 60 iterations where
            `iterations` is None. Of fields alone the nearest affine map is the affine start.
        composed_steps: of the variational method, steps (`diffreg.registration.composed`) with
            which levels begin, told as iterations are, 0: none. None: (100, 50, 10) of volumes, 0
            of slices and from a start that has a field.

    Returns:
        The registration.

    Raises:
        TypeError: an argument of another type.
        ValueError: the images share no plane, no voxel or no contrast, a mask is empty, there is no
            network to refine, a landmark is outside, or an option that does not fit.

    Example:
        >>> import numpy as np
        >>> import diffreg
        >>> x = np.arange(16.0)
        >>> blob = lambda at: np.exp(-((x[:, None] - at) ** 2 + (x - 8) ** 2) / 18)
        >>> result = diffreg.register(blob(9), blob(7), levels=1, iterations=10)
        >>> type(result.warped).__name__, result.metrics["folded_percent"]
        ('ndarray', 0.0)
    """
    _check_options(
        *(network, objective, trained_on, contrast_free),
        *(refine, both_ways, guarantee, fill, progress),
    )
    refine = int(refine)
    if network is not None:
        beside = {"preset": preset, "weights": weights, "also": also or None}
        _check_free({**beside, "landmarks": landmarks})
    goal = Goal(objective, preset, similarity if network is None else None, weights).checked()
    schedule, place = schedule_of(levels, iterations, composed_steps), device_named(device)
    pair = _images(moving, fixed, fixed_mask, moving_mask)
    channels = [Channel.checked(k, given, pair) for k, given in enumerate(also, start=1)]
    points = None if landmarks is None else Landmarks.checked(landmarks, pair.fixed)
    named = _trained_with(network, similarity)
    check_type("normalization", normalization, Normalization, optional=True)
    placed = _have_places(moving, fixed)
    if start is None:
        begin = affine_start(pair, affine, named or goal.measures, search, normalization, placed)
    else:
        _check_begun(affine, search)
        begin = known_start(start, pair)
    if begin.displacement is not None:
        _check_goes_on(network, levels, both_ways)
        schedule = schedule_of(1, iterations, composed_steps or 0)
    prepared = pair.prepared(normalization, begin.matrix)
    result: Registration | ValueError
    if network is None:
        wanted = Search(goal, schedule, channels, points, progress, place, begin.displacement)
        result = solved(prepared, wanted, Ending(both_ways, guarantee, fill))
    else:
        options = named, both_ways, guarantee, objective, refine, progress, fill
        known = trained_on if _have_places(fixed) else None
        (result,) = register_batch([prepared], network, *options, known, contrast_free)
    if isinstance(result, ValueError):
        raise result
    return Returned.of(replace(started(result, begin), given=moving))


def _check_options(
    network: Any,
    objective: Any,
    trained_on: Any,
    contrast_free: Any,
    refine: Any,
    both_ways: Any,
    guarantee: Any,
    fill: Any,
    show: Any,
) -> None:
    if network is not None and not callable(network):
        hint = f'; give **diffreg.load_pretrained("{network}")' * isinstance(network, str)
        raise TypeError(f"network must be a torch.nn.Module, got {type(network).__name__}{hint}")
    check_type("objective", objective, Objective, optional=True)
    check_type("trained_on", trained_on, Voxels, optional=True)
    check_type("refine", refine, int)
    if refine and network is None:
        raise ValueError("refine needs a network, whose displacement is where it starts")
    flags = {"both_ways": both_ways, "guarantee": guarantee, "contrast_free": contrast_free}
    for name, flag in flags.items():
        check_type(name, flag, bool)
    check_fill(fill)
    if show is not None and not callable(show):
        raise TypeError(f"progress must be callable or None, got {type(show).__name__}")


def _check_begun(affine: Any, search: Any) -> None:
    """A start that is known has its affine map, and nothing is looked for."""
    if isinstance(affine, np.ndarray) or affine != "auto":
        raise ValueError("start has the affine map: leave affine out")
    if search:
        raise ValueError("search looks for an affine start: leave it out, start is one")


def _check_goes_on(network: Any, levels: Any, both_ways: bool) -> None:
    """What goes with no start that has a field."""
    where = "where start has a field, the variational method goes on from there"
    if network is not None:
        raise ValueError(f"{where}: leave out the network, or give its affine map alone")
    if levels not in (None, 1):
        raise ValueError(f"{where}, on the images' own grid: leave out levels, got {levels}")
    if both_ways:
        raise ValueError(f"{where}, one way: leave out both_ways")


def _check_free(options: Mapping[str, Any]) -> None:
    """A network keeps the objective that it was trained with."""
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{name} is of the variational method: leave it out with a network")


def _trained_with(network: Any, similarity: Any) -> str | None:
    """What the network was trained with, where that is known."""
    if network is None or similarity in (None, "auto"):
        return None
    return similarity if isinstance(similarity, str) else "+".join(similarity)


def _images(moving: Any, fixed: Any, mask: Any, moving_mask: Any) -> PairImages:
    """What was given as images of diffreg."""

    def chosen(image: Image, name: str, value: Any) -> Image | None:
        return None if value is None else on_grid_of(image, name, value, label=True)

    images = as_pair(moving, fixed)
    masks = chosen(images[1], "fixed_mask", mask), chosen(images[0], "moving_mask", moving_mask)
    return PairImages(*images, *masks)


def _have_places(*given: Any) -> bool:
    """Whether both know where they lie; arrays do not."""
    return not any(isinstance(image, np.ndarray | Tensor) for image in given)


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
    trained_on: Voxels | None = None,
    contrast_free: bool = False,
) -> list[Registration | ValueError]:
    """Register several pairs through a network at once.

    Args:
        pairs: as `prepare` gives them, with the network's normalisation; of one size.
        network: called (moving, fixed) -> displacement.
        similarity: what the network was trained with, if known.
        both_ways, guarantee, objective, refine, progress, fill, trained_on, contrast_free: as in
            `register`; pairs are refined one by one.

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
    names, ending = similarity or "as trained", Ending(both_ways, guarantee, fill)

    def result_of(pair: Prepared, u: Tensor, v: Tensor | None) -> Registration:
        if not bool(torch.isfinite(u).all()):
            raise ValueError("the network's displacement holds values that are NaN or infinite")
        if not refine:
            result = finished(pair, u, v, Found("network", names, seconds), ending)
            origin = {} if objective is None else {"objective": described(objective)}
        else:
            # What a network was taught that knows no contrast is worth less than what suits a pair.
            free = contrast_free and knows(trained_on, pair.fixed)
            choice = choose(pair) if free else Choice(objective or Objective("ncc"), {})
            goal = with_proportions(choice.objective, pair.fixed)
            place = device_of(network)
            u, v, more, measured = refined(pair, u, v, goal, refine, progress, place)
            by = "+".join(goal.similarity) if choice.metrics else names
            result = finished(pair, u, v, Found("refined network", by, seconds + more), ending)
            origin = {"refinement": measured, "objective": described(goal)}
            if choice.metrics:
                origin["contrast"] = choice.metrics
        result.metrics.update(origin, device=device_in_words(device_of(network)))
        return as_trained(result, trained_on)

    results: list[Registration | ValueError] = []
    for pair, u, v in zip(pairs, there.split(1), back.split(1), strict=True):
        try:
            results.append(result_of(pair, u, v if both_ways else None))
        except ValueError as error:
            results.append(error)
    return results
