"""How many levels, iterations at most on each, and composed steps before them.

One number is of all levels. Several are of the last ones, from coarse to fine: the last of the
finest level, the first of all coarser ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from diffreg.data.comparable import check_type
from diffreg.registration.pyramid import possible_levels

LEVELS = 6
ITERATIONS = (40, 40, 20)
COMPOSED_STEPS = (100, 50, 10)  # of volumes
FEW = 60  # iterations on each level where there are fewer than three, or, with composed steps, two


def iterations_on(
    levels: int, iterations: int | Sequence[int] | None = None, composed: bool = False
) -> list[int]:
    """At most, on each of so many levels, as `register_variational` takes them.

    Args:
        levels, iterations: as there.
        composed: whether a level begins with composed steps.

    Example:
        >>> from diffreg.registration.schedule import iterations_on
        >>> iterations_on(4), iterations_on(2), iterations_on(2, (9, 8, 7))
        ([40, 40, 40, 20], [60, 60], [8, 7])
    """
    if iterations is None:
        iterations = ITERATIONS if levels >= (2 if composed else 3) else FEW
    return _spread(levels, iterations)


def composed_steps_on(
    levels: int, dimensions: int, steps: int | Sequence[int] | None = None
) -> list[int]:
    """The composed steps with which each of so many levels begins.

    Args:
        levels, steps: as `register_variational` takes levels and composed_steps.
        dimensions: D of the images.

    Example:
        >>> from diffreg.registration.schedule import composed_steps_on
        >>> composed_steps_on(4, 3), composed_steps_on(2, 3), composed_steps_on(2, 2)
        ([100, 100, 50, 10], [50, 10], [0, 0])
    """
    if steps is None:
        steps = COMPOSED_STEPS if dimensions == 3 else 0
    return _spread(levels, steps)


def _spread(levels: int, numbers: int | Sequence[int]) -> list[int]:
    """One a level, from coarse to fine: the last of the finest, the first of all coarser ones."""
    each = [numbers] if isinstance(numbers, int) else list(numbers)
    return [each[0]] * (levels - len(each)) + each[-levels:]


class Schedule(NamedTuple):
    """As above; None: the usual ones."""

    levels: int = LEVELS
    iterations: int | tuple[int, ...] | None = None
    composed_steps: int | tuple[int, ...] | None = None

    def on(self, shape: Sequence[int]) -> Schedule:
        """For an image of this shape (*S), which may bear fewer levels: nothing is None."""
        levels = possible_levels(shape, self.levels)
        steps = composed_steps_on(levels, len(shape), self.composed_steps)
        iterations = iterations_on(levels, self.iterations, any(steps))
        return Schedule(levels, _one(iterations), _one(steps))


def schedule_of(levels: Any = None, iterations: Any = None, composed_steps: Any = None) -> Schedule:
    """Levels, iterations and composed steps as they were asked for.

    Args:
        levels: a whole number from 1; None: the usual ones.
        iterations: a whole number from 1, or several, from coarse to fine, the last of the finest
            level and the first of all coarser ones; None: the usual ones
            (`diffreg.registration.schedule.iterations_on`).
        composed_steps: likewise, from 0 (`diffreg.registration.schedule.composed_steps_on`).

    Raises:
        TypeError, ValueError: something else, or more numbers than levels.

    Example:
        >>> from diffreg.registration.schedule import schedule_of
        >>> schedule_of(4, (40, 30)).on((256, 256)).iterations
        (40, 40, 40, 30)
    """
    levels = LEVELS if levels is None else _whole("levels", levels)
    at_most = _numbers("iterations", iterations, levels, 1)
    return Schedule(levels, at_most, _numbers("composed_steps", composed_steps, levels, 0))


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


def check_numbers(levels: int, iterations: int | Sequence[int] | None) -> None:
    """Refuse with a ValueError what `register_variational` takes for neither."""
    if not all(_is_whole(number, 1) for number in (levels, *_told(iterations, 1))):
        raise ValueError(
            f"levels and iterations must be whole numbers from 1, got {levels}, {iterations}"
        )


def check_composed_steps(composed_steps: int | Sequence[int] | None) -> None:
    """Refuse with a ValueError what is no number of composed steps."""
    if not all(_is_whole(number, 0) for number in _told(composed_steps, 0)):
        raise ValueError(f"composed_steps must be whole numbers from 0, got {composed_steps}")


def _told(numbers: int | Sequence[int] | None, usual: int) -> Sequence[object]:
    """The numbers one by one; of none, something that is no number."""
    if numbers is None:
        return [usual]
    if isinstance(numbers, str) or not isinstance(numbers, Sequence):
        return [numbers]
    return numbers or [None]


def _is_whole(number: object, least: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= least
