"""What the variational method minimises and how long: a preset, its parts, or as contrasts say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from diffreg.data.comparable import check_type
from diffreg.data.geometry import Image
from diffreg.data.prepare import Prepared, relative_spacing
from diffreg.losses import PRESETS, SIMILARITIES, Objective
from diffreg.ops import Weights
from diffreg.ops._checks import check_choice
from diffreg.ops._objective import checked_mixture, checked_weights
from diffreg.registration.contrast import Choice, choose
from diffreg.registration.pyramid import possible_levels
from diffreg.registration.result import SAME_CONTRAST
from diffreg.registration.terms import changed
from diffreg.registration.variational import LEVELS, iterations_on, steps_on

LARGEST = 1e30  # of a similarity's factors: single precision ends at 3e38


class Goal(NamedTuple):
    """What was said of what is minimised; None and "auto" say nothing."""

    objective: Objective | None = None
    preset: str | None = None
    similarity: str | Mapping[str, float] | None = None
    weights: Sequence[float] | None = None

    def checked(self) -> Goal:
        """The same, None for "auto".

        Raises:
            TypeError, ValueError: a part that is none, or one beside an objective, which has all.
        """
        preset = None if self.preset == "auto" else self.preset
        similarity = None if self.similarity == "auto" else self.similarity
        if preset is not None:
            check_choice("preset", preset, ("auto", *PRESETS))
        if isinstance(similarity, str):
            check_choice("similarity", similarity, ("auto", *SIMILARITIES))
        elif similarity is not None:
            check_mapping(similarity)
        if isinstance(self.weights, str):
            raise TypeError(f"weights must be 4 numbers, got {self.weights!r}: preset takes a name")
        weights = None if self.weights is None else checked_weights(self.weights)
        parts = {"preset": preset, "similarity": similarity, "weights": weights}
        said = {name: value for name, value in parts.items() if value is not None}
        if said and self.objective is not None:
            name, value = next(iter(said.items()))
            raise ValueError(
                f"{name} and objective both say what is minimised: leave out {value!r}"
            )
        return Goal(self.objective, preset, similarity, weights)

    @property
    def measures(self) -> dict[str, float] | None:
        """The similarities that were named, by themselves or by the preset; None: none were."""
        if self.similarity is not None:
            return checked_mixture(self.similarity, SIMILARITIES)
        return None if self.preset is None else dict(PRESETS[self.preset].similarity)


def check_mapping(similarity: Any) -> None:
    """Refuse what is no mixture.

    Raises:
        TypeError, ValueError: no mapping, or one of something else than measures to factors.
    """
    if not isinstance(similarity, Mapping):
        raise TypeError(
            "similarity must be a name, or a mapping of names to factors such as "
            f"{{'ncc': 1, 'lncc': 0.2}}, got {type(similarity).__name__}"
        )
    factors = checked_mixture(similarity, SIMILARITIES).values()
    if min(factors) < 0 or not 0 < max(factors) <= LARGEST:
        raise ValueError(
            f"similarity must have factors from 0 to {LARGEST:g}, one of them above 0, got "
            f"{dict(similarity)}"
        )


def chosen(prepared: Prepared, goal: Goal) -> Choice:
    """The objective of a pair, and why.

    A preset has similarity and weights, each of which gives way to what was said by itself.
    Without a preset, a similarity has the weights found for its kind, and weights go with the
    similarity that the contrasts ask for.

    Args:
        prepared: the pair after its affine start.
        goal: checked.

    Example: `chosen(prepare(moving, fixed), Goal(preset="paper")).objective`
    """
    if goal.objective is not None:
        return Choice(goal.objective, {})
    if goal.preset is not None:
        found = Choice(Objective(weights=goal.preset), {})
    else:
        found = choose(prepared, "auto" if goal.measures is None else _telling(goal.measures))
    usual = found.objective
    measures = goal.measures or usual.similarity
    weights = usual.weights if goal.weights is None else Weights(*goal.weights)
    return Choice(changed(usual, measures, weights), found.metrics)


def _telling(measures: Mapping[str, float]) -> str:
    """Of a mixture, the measure whose kind it is of: one across contrasts, where there is one."""
    across = [name for name in measures if name not in SAME_CONTRAST]
    return [*across, *measures][0]


def with_proportions(objective: Objective, fixed: Image) -> Objective:
    """The objective, weighing derivatives by the voxels' proportions unless it has a spacing.

    Args:
        objective: which.
        fixed: the fixed image.

    Example: `with_proportions(Objective("ncc"), fixed).spacing`
    """
    if objective.spacing is None:
        return objective.with_spacing(relative_spacing(fixed))
    return objective


class Schedule(NamedTuple):
    """How many levels, iterations at most, and composed steps before them.

    One number of all levels, or the last ones' from coarse to fine; None: the usual ones.
    """

    levels: int = LEVELS
    iterations: int | tuple[int, ...] | None = None
    steps: int | tuple[int, ...] | None = None

    def on(self, shape: Sequence[int]) -> Schedule:
        """For an image of this shape (*S), which may bear fewer levels: nothing is None."""
        levels = possible_levels(shape, self.levels)
        steps = steps_on(levels, len(shape), self.steps)
        iterations = iterations_on(levels, self.iterations, any(steps))
        return Schedule(levels, _one(iterations), _one(steps))


def schedule_of(levels: Any = None, iterations: Any = None, steps: Any = None) -> Schedule:
    """Levels, iterations and composed steps as they were asked for.

    Args:
        levels: a whole number from 1; None: the usual ones.
        iterations: a whole number from 1, or several, from coarse to fine, the last of the finest
            level and the first of all coarser ones; None: the usual ones
            (`diffreg.registration.variational.iterations_on`).
        steps: composed ones, likewise, from 0 (`diffreg.registration.variational.steps_on`).

    Raises:
        TypeError, ValueError: something else, or more numbers than levels.

    Example:
        >>> from diffreg.registration.goal import schedule_of
        >>> schedule_of(4, (40, 30)).on((256, 256)).iterations
        (40, 40, 40, 30)
    """
    levels = LEVELS if levels is None else _whole("levels", levels)
    at_most = _numbers("iterations", iterations, levels, 1)
    return Schedule(levels, at_most, _numbers("steps", steps, levels, 0))


def _numbers(name: str, given: Any, levels: int, least: int) -> int | tuple[int, ...] | None:
    """One number, or several, at most one a level."""
    if given is None:
        return None
    if isinstance(given, str) or not isinstance(given, Sequence):
        return _whole(name, given, least)
    if not 1 <= len(given) <= levels:
        raise ValueError(
            f"{name} must be one number, or from 1 to {levels}, as there are levels, from "
            f"coarse to fine, got {list(given)}"
        )
    return tuple(_whole(f"{name} of a level", number, least) for number in given)


def _whole(name: str, number: Any, least: int = 1) -> int:
    """A whole number from the least one."""
    check_type(name, number, int)
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return int(number)


def _one(each: Sequence[int]) -> int | tuple[int, ...]:
    """The number of all levels, where they have one."""
    return each[0] if len(set(each)) == 1 else tuple(each)
