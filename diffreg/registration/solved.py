"""One pair through the variational method: its channels, its landmarks and what is minimised."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffreg.data.prepare import Prepared
from diffreg.registration.channels import Channel, Stack, stacked
from diffreg.registration.finished import Ending, Found, finished
from diffreg.registration.goal import Goal, chosen, with_proportions
from diffreg.registration.known_start import measured
from diffreg.registration.landmarks import Landmarks
from diffreg.registration.provenance import described, device_in_words
from diffreg.registration.result import Registration
from diffreg.registration.schedule import Schedule
from diffreg.registration.smoothing import smoothed
from diffreg.registration.variational import register_variational

_CPU = torch.device("cpu")


class Search(NamedTuple):
    """What the variational method is asked for."""

    goal: Goal  # checked
    schedule: Schedule
    channels: Sequence[Channel] = ()
    landmarks: Landmarks | None = None
    progress: Callable[..., Any] | None = None
    device: torch.device = _CPU
    start: Tensor | None = None  # (1, D, *S), fixed voxels, to go on from, on one level


def solved(prepared: Prepared, search: Search, ending: Ending) -> Registration:
    """The registration of a pair by the variational method.

    Args:
        prepared: the pair after its affine start.
        search: what is minimised, how long and on what.
        ending: what is made of it.

    Raises:
        ValueError: a channel that shares no voxel with the pair, or has no contrast there.

    Example: `solved(prepare(moving, fixed), Search(Goal(), schedule_of()), Ending()).metrics`
    """
    choice = chosen(prepared, search.goal)
    goal = with_proportions(choice.objective, prepared.fixed)
    stack = stacked(prepared, [channel.prepared(prepared) for channel in search.channels])
    schedule = search.schedule.on(prepared.fixed.shape)
    levels, iterations, composed_steps = schedule
    began, begin = {}, None
    if search.start is not None:
        began = {"start": measured(prepared, search.start)}
        begin = smoothed(search.start).to(search.device)
    weights = [1.0, *(channel.weight for channel in search.channels)]

    def solve(images: Stack, back: bool) -> Tensor:
        moving, fixed = images.moving.to(search.device), images.fixed.to(search.device)
        mask = None if images.mask is None else images.mask.to(search.device)
        points = search.landmarks
        found = register_variational(
            *(moving, fixed, goal, levels, iterations, mask, search.progress),
            margin=images.margin,
            start=begin,
            channels=weights if search.channels else None,
            landmarks=points and points.in_voxels(prepared.fixed, prepared.affine, back),
            composed_steps=composed_steps,
            counts=counts,
        )
        return found.to("cpu")

    counts = Counter(dict.fromkeys(("evaluations", "steps", "shortened locally"), 0))
    start = time.perf_counter()
    displacement = solve(stack, back=False)
    seconds = time.perf_counter() - start
    counted = dict(counts)
    inverse = solve(stack.turned, back=True) if ending.both_ways else None
    found = Found("variational", "+".join(goal.similarity), seconds)
    result = finished(prepared, displacement, inverse, found, ending)
    objective = described(goal, **schedule._asdict()) | _channels(search)
    beside = began | _beside(result, search)
    result.metrics.update(objective=objective, descent=counted, **beside)
    if choice.metrics:
        result.metrics["contrast"] = choice.metrics
    return result


def _channels(search: Search) -> dict[str, Any]:
    """What metrics.json says of an objective beside its measures and weights."""
    said: dict[str, Any] = {"preset": search.goal.preset} if search.goal.preset else {}
    if search.channels:
        said["channels"] = [
            {"moving": channel.moving.name, "fixed": channel.fixed.name, "weight": channel.weight}
            for channel in search.channels
        ]
    return said


def _beside(result: Registration, search: Search) -> dict[str, Any]:
    """Where it was computed, unless on the CPU, and how far the landmarks are apart."""
    found: dict[str, Any] = {}
    if search.device.type != "cpu":
        found["device"] = device_in_words(search.device)
    if search.landmarks is not None:
        whole = result.fixed, result.displacement, result.affine
        found["landmarks"] = search.landmarks.measured(*whole)
    return found
