"""What the variational method minimises: a preset, its parts, or as the contrasts say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from diffreg.data.geometry import Image
from diffreg.data.prepare import Prepared, relative_spacing
from diffreg.losses import PRESETS, SIMILARITIES, Objective
from diffreg.ops import Weights
from diffreg.ops._checks import check_choice
from diffreg.ops._objective import checked_mixture, checked_weights
from diffreg.registration.contrast import Choice, choose
from diffreg.registration.result import SAME_CONTRAST
from diffreg.registration.terms import changed

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
