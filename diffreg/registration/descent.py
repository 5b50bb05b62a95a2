"""L-BFGS over unfolded displacements, preconditioned with the regulariser.

The line search accepts no displacement with a cell that is not certainly unfolded: where a step
would fold some cells, it is shortened about them, and all of it only where that does not do.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from diffreg.registration.ordered import dot
from diffreg.registration.regulariser import Regulariser
from diffreg.registration.unfolded import bounds_of, shortened_

# Of a displacement (1, D, *S): the objective, (), and its gradient.
ValueAndGradient = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
Pair = tuple[torch.Tensor, torch.Tensor]

# Pairs of steps and gradient changes that L-BFGS keeps, by D: of a volume each pair is six volumes.
MEMORY = {2: 10, 3: 3}
FIRST_STEP, LARGEST_STEP = 0.5, 2.0  # voxels, the largest component
TOLERANCE = 1e-6  # relative decrease at which a level counts as converged
TRIALS = 20  # of one line search
SMALLEST_SHARE = 1e-3  # of the data term in the curvature along a step


class History:
    """The last steps and what the gradient changed along them, in one block of memory.

    Args:
        like: displacement (1, D, *S).
    """

    def __init__(self, like: torch.Tensor) -> None:
        self.size = MEMORY[like.ndim - 2]
        self.block = like.new_empty(self.size, 2, like.numel())
        self.curvatures: list[torch.Tensor] = []
        self.added = 0

    def add(self, before: Pair, after: Pair) -> Pair:
        """Keeps the differences of two points and of their gradients, (1, D, *S) each; flat."""
        change, bend = self.block[self.added % self.size]
        for out, old, new in zip((change, bend), before, after, strict=True):
            torch.sub(new.reshape(-1), old.reshape(-1), out=out)
        self.curvatures = [*self.curvatures, dot(change, bend)][-self.size :]
        self.added += 1
        return change, bend

    def clear(self) -> None:
        self.curvatures = []

    def __len__(self) -> int:
        return len(self.curvatures)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """(step, change of the gradient, their product), the oldest first."""
        for k, curvature in enumerate(self.curvatures, start=self.added - len(self)):
            change, bend = self.block[k % self.size]
            yield change, bend, curvature


class _Point(NamedTuple):
    """A displacement (1, D, *S), and what is known of it."""

    displacement: torch.Tensor
    value: float
    gradient: torch.Tensor  # (1, D, *S)
    bounds: torch.Tensor  # (1, *cells), below every determinant of a cell


def minimise(
    value_and_gradient: ValueAndGradient,
    start: torch.Tensor,
    regulariser: Regulariser,
    iterations: int,
    report: Callable[[int], None],
    counts: Counter[str],
) -> torch.Tensor:
    """The displacement that it arrives at, unfolded; `start` must be, and may be written over.

    What it computes with stays where the images are; it waits for a few numbers an iteration.

    Args:
        value_and_gradient: of a displacement.
        start: (1, D, *S).
        regulariser: of the displacement's grid.
        iterations: at most.
        report: called with the iterations done.
        counts: of "evaluations", of "steps", and of steps "shortened locally", which is added to.
    """
    start = start.contiguous()  # as a network's may not be: below, flat views of it are written to
    found, gradient = value_and_gradient(start)
    at = _Point(start, found.item(), gradient, bounds_of(start))
    trial, direction = torch.empty_like(start), torch.empty_like(start)
    data = at.gradient.abs().max() / FIRST_STEP
    history = History(start)
    for iteration in range(iterations):
        _descend(at.gradient, history, regulariser, data, direction)
        slope, longest = torch.stack([dot(at.gradient, direction), _longest(direction)]).tolist()
        if not slope < 0:
            break
        step = min(1.0, LARGEST_STEP / longest) if len(history) else FIRST_STEP / longest
        accepted = _search(value_and_gradient, at, direction, slope, step, trial, counts)
        if accepted is None:
            if not len(history):
                break
            history.clear()  # the quadratic model misled: start again from the gradient
            continue
        change, _ = history.add(
            (at.displacement, at.gradient), (accepted.displacement, accepted.gradient)
        )
        data = _data_curvature(change.view_as(start), history.curvatures[-1], regulariser, data)
        converged = at.value - accepted.value <= TOLERANCE * abs(at.value)
        trial = at.displacement
        # Copied: what lives on between the operators' temporary memory would break it up.
        at = accepted._replace(gradient=at.gradient.copy_(accepted.gradient))
        del accepted
        counts["steps"] += 1
        report(iteration + 1)
        if converged:
            break
    report(iterations)
    return at.displacement


def _longest(direction: torch.Tensor) -> torch.Tensor:
    """The largest component, without an array of magnitudes."""
    low, high = direction.aminmax()
    return torch.maximum(-low, high)


def _data_curvature(change, curvature, regulariser: Regulariser, before) -> torch.Tensor:
    """What the similarity adds to the second derivative along the last step, a voxel."""
    data = curvature - regulariser.curvature(change)
    found = torch.maximum(data, SMALLEST_SHARE * curvature) / dot(change, change)
    return torch.where(curvature > 0, found, before)


def _descend(gradient, history, regulariser: Regulariser, data, direction) -> None:
    """Writes minus the inverse Hessian's approximation times the gradient (two-loop recursion).

    A step along which the gradient did not grow teaches nothing: its factors are 0.
    """
    torch.neg(gradient, out=direction)
    flat = direction.reshape(-1)  # and so is the history: views cost as much as dot products
    factors = []
    steps = list(history)
    for change, bend, curvature in reversed(steps):
        factor = torch.where(curvature > 0, dot(change, flat) / curvature, 0)
        flat.addcmul_(bend, -factor)
        factors.append(factor)
    regulariser.solve_(direction, data)
    for (change, bend, curvature), factor in zip(steps, reversed(factors), strict=True):
        back = torch.where(curvature > 0, dot(bend, flat) / curvature, 0)
        flat.addcmul_(change, factor - back)


def _search(
    value_and_gradient: ValueAndGradient,
    at: _Point,
    direction: torch.Tensor,
    slope: float,
    step: float,
    trial: torch.Tensor,
    counts: Counter[str],
) -> _Point | None:
    """The first shortened step that lowers the objective enough and folds nothing, or None.

    Its displacement is written to `trial`.
    """
    for _ in range(TRIALS):
        torch.add(at.displacement, direction, alpha=step, out=trial)
        bounds, shortened = shortened_(trial, at.displacement, at.bounds)
        if bounds is None:
            step /= 2
            continue
        expected = step * slope
        if shortened:
            expected = dot(at.gradient, trial - at.displacement).item()
        found, gradient = value_and_gradient(trial)
        value = found.item()
        counts["evaluations"] += 1
        if expected < 0 and value <= at.value + 1e-4 * expected:
            counts["shortened locally"] += shortened
            return _Point(trial, value, gradient, bounds)
        # The minimum of the parabola through what is known, within bounds; NaN takes the lower.
        above = value - at.value - expected
        parabola = -expected * step / (2 * above) if above else 0.0
        step = min(max(0.1 * step, parabola), 0.5 * step)
    return None
