"""Registration without learning: the displacement of each pair is optimised directly.

Multilevel, limited-memory BFGS preconditioned with the regulariser, with a line search that never
accepts a displacement with a corner determinant that is not positive, so that the result does not
fold at any level. bench/variational/optimisers.py measures it against what it replaced.
"""

from collections.abc import Callable, Iterator, Sequence

import torch

from diffreg.fields import make_diffeomorphic, resize
from diffreg.losses import Objective, Weights
from diffreg.ops import deformation_energy, jacobian_determinant
from diffreg.ops._checks import (
    arithmetic_dtype,
    check_floating,
    check_image,
    check_pair,
    check_same_device,
    check_tensor,
    checked_mask,
)
from diffreg.registration.leaving import STRENGTH, add_leaving
from diffreg.registration.pyramid import Level, levels_of

# Called with (iterations done, iterations at most) over all levels and samples.
Progress = Callable[[int, int], None]
# Of a displacement (1, D, *S): the objective, (), and its gradient.
ValueAndGradient = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

# Pairs of steps and gradient changes that L-BFGS keeps, by D: of a volume each pair is six volumes.
MEMORY = {2: 10, 3: 3}
FIRST_STEP, LARGEST_STEP = 0.5, 2.0  # voxels, the largest component
TOLERANCE = 1e-6  # relative decrease at which a level counts as converged
# The line search keeps this distance from 0: a smaller determinant is within rounding of a fold.
SMALLEST_DETERMINANT = 1e-3
# What a start that folds is repaired to: at the distance above no step would be left to take.
START_DETERMINANT = 0.2
SMALLEST_SHARE = 1e-3  # of the data term in the curvature along a step
Pair = tuple[torch.Tensor, torch.Tensor]


def register_variational(
    moving: torch.Tensor,
    fixed: torch.Tensor,
    objective: Objective | None = None,
    levels: int = 3,
    iterations: int = 60,
    mask: torch.Tensor | None = None,
    progress: Progress | None = None,
    start: torch.Tensor | None = None,
    margin: Sequence[int] | None = None,
) -> torch.Tensor:
    """Minimises the objective over the displacement, pair by pair, from coarse to fine.

    A displacement that leads voxels out of the moving image pays for it
    (`diffreg.registration.leaving`): leaving must not be a way to a lower objective.

    Args:
        moving: image (N, C, *S), any floating dtype; values of about [0, 1] suit the weights. With
            a margin it is larger than `fixed`.
        fixed: image (N, C, *S), D = 2 or 3.
        objective: what to minimise; None is Objective("ncc"), with the default weights.
        levels: pyramid levels, each half the size of the next; an axis shrinks to 16 voxels only,
            and there are as many levels as the two longest axes have.
        iterations: at most, on each level.
        mask: weights (N, 1, *S) of the similarity on the fixed grid; None is 1.
        progress: called with (iterations done, iterations at most).
        start: displacement (N, D, *S), voxels, to begin from, such as a network's: `levels` is 1
            then. Where it folds it is repaired first (`diffreg.fields.make_diffeomorphic`), and the
            objective ends no higher than there.
        margin: voxels that `moving` has before the first one of `fixed`, along each axis; None: it
            has the shape of `fixed`.

    Returns:
        Displacement (N, D, *S), voxels; every corner determinant is positive.

    Raises:
        TypeError, ValueError: images, mask, start or numbers that do not fit.

    Source:
        Multilevel hyperelastic registration with a determinant-preserving line search: Burger,
        Modersitzki and Ruthotto 2013; Modersitzki, FAIR, 2009.

    Example:
        >>> import torch
        >>> from diffreg.registration.variational import register_variational
        >>> image = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> register_variational(image, image, levels=1).abs().max() < 1e-6
        tensor(True)
    """
    margin = _checked_margin(margin, moving, fixed)
    dtype = arithmetic_dtype(moving, fixed)
    moving, fixed = moving.to(dtype), fixed.to(dtype)
    for name, image in (("moving", moving), ("fixed", fixed)):
        bad = int((~torch.isfinite(image)).sum())
        if bad:
            raise ValueError(f"{name} must be finite, {bad} of its values are NaN or infinite")
    weights = checked_mask(mask, fixed, dtype)
    if levels < 1 or iterations < 1:
        raise ValueError(f"levels and iterations must be at least 1, got {levels}, {iterations}")
    objective = Objective("ncc") if objective is None else objective
    if start is None:
        start = fixed.new_zeros(len(fixed), fixed.ndim - 2, *[1] * (fixed.ndim - 2))
    else:
        start, levels = _checked_start(start, fixed), 1
    pyramid = levels_of(fixed.shape[2:], moving.shape[2:], margin, levels)
    at_most = len(pyramid) * iterations
    displacements = []
    for n in range(len(fixed)):

        def report(done: int, offset: int = n * at_most) -> None:
            if progress is not None:
                progress(offset + done, len(fixed) * at_most)

        pair = moving[n : n + 1], fixed[n : n + 1], None if weights is None else weights[n : n + 1]
        begin = start[n : n + 1]
        displacements.append(_register_pair(*pair, begin, objective, pyramid, iterations, report))
    empty = fixed.new_zeros(0, fixed.ndim - 2, *fixed.shape[2:])
    return torch.cat(displacements) if displacements else empty


def _checked_margin(margin, moving, fixed) -> Sequence[int]:
    """Voxels of moving before fixed along each axis, where the images fit each other."""
    if margin is None:
        check_pair(moving, fixed, "moving")
        return [0] * (fixed.ndim - 2)
    check_image("moving", moving)
    check_image("fixed", fixed)
    beyond = [m - n for m, n in zip(moving.shape, fixed.shape, strict=True)]
    fits = len(margin) == fixed.ndim - 2 and beyond[:2] == [0, 0]
    if not fits or not all(0 <= m <= b for m, b in zip(margin, beyond[2:], strict=True)):
        raise ValueError(
            f"moving, {list(moving.shape)}, must hold fixed, {list(fixed.shape)}, and "
            f"{list(margin)} voxels before it"
        )
    return margin


def _checked_start(start: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """The start in the dtype of the images, each sample unfolded by the optimiser's margin."""
    check_tensor("start", start)
    check_floating("start", start)
    expected = [len(fixed), fixed.ndim - 2, *fixed.shape[2:]]
    if list(start.shape) != expected:
        raise ValueError(f"start must be (N, D, *S) = {expected}, got {list(start.shape)}")
    check_same_device("start", start, "fixed", fixed)
    start = start.detach().to(fixed.dtype)
    if not bool(torch.isfinite(start).all()):
        raise ValueError("start must be finite, it holds values that are NaN or infinite")
    return torch.cat([_repaired(sample) for sample in start.split(1)]) if len(start) else start


def _repaired(displacement: torch.Tensor) -> torch.Tensor:
    """The field itself, or moved where it folds or nearly does, and nowhere else."""
    if is_unfolded(displacement):
        return displacement
    if displacement.ndim == 5:  # the repair is 2-D so far
        return _unfolded_start(displacement)
    return make_diffeomorphic(displacement, START_DETERMINANT).displacement


def _register_pair(
    moving, fixed, mask, displacement, objective, pyramid, iterations, report
) -> torch.Tensor:
    lengths = _lengths(objective, fixed.ndim - 2)
    factors = sum(abs(factor) for factor in objective.similarity.values())
    strength = STRENGTH * objective.weights.similarity * factors
    for step, level in enumerate(pyramid):
        images = level.of_moving(moving), level.of_fixed(fixed)
        weights = None if mask is None else level.of_fixed(mask)
        spacing = [h * f for h, f in zip(lengths, level.factors, strict=True)]
        own = objective.with_spacing(spacing).value_and_gradient_of(*images, weights)
        extent = images[0].shape[2:]

        def report_level(done: int, offset: int = step * iterations) -> None:
            report(offset + done)

        def value_and_gradient(
            u: torch.Tensor, own: ValueAndGradient = own, extent: Sequence[int] = extent
        ) -> tuple[torch.Tensor, torch.Tensor]:
            value, gradient = own(u)
            return value + add_leaving(u, gradient, strength, extent), gradient

        start = _unfolded_start(resize(displacement, level.size))
        regulariser = Regulariser(start, spacing, objective.weights)
        # In voxels of the moving image: a constant changes neither energies nor determinants.
        start = start + _offset(level, start)
        found = _minimise(value_and_gradient, start, regulariser, iterations, report_level)
        displacement = found.sub_(_offset(level, found))
    return displacement


def _offset(level: Level, like: torch.Tensor) -> torch.Tensor:
    """The margin as a displacement (1, D, 1, ...)."""
    return like.new_tensor(level.margin).reshape(1, -1, *[1] * (like.ndim - 2))


def _lengths(objective: Objective, dimensions: int) -> list[float]:
    spacing = objective.spacing
    if spacing is None:
        return [1.0] * dimensions
    return [float(spacing)] * dimensions if isinstance(spacing, (int, float)) else list(spacing)


def is_unfolded(displacement: torch.Tensor) -> bool:
    """Whether every determinant is positive, by a margin; not so where one is NaN.

    What is asked is the cells' lower bound, which is rounded, and so screens but does not certify:
    in 2-D the smallest corner, in 3-D, where corners prove nothing of the inside, less.
    """
    if displacement.numel() == 0 or max(displacement.shape[2:]) == 1:
        return True  # no cell
    bounds = jacobian_determinant(displacement.detach(), "bound")
    return bounds.min().item() > SMALLEST_DETERMINANT


def _unfolded_start(displacement: torch.Tensor) -> torch.Tensor:
    """The field, scaled down where interpolation to the finer grid or rounding left a fold."""
    while not is_unfolded(displacement):
        displacement = displacement / 2
    return displacement


class Regulariser:
    """The second derivative of the weighted diffusion and bending energies, as if u were periodic.

    The Fourier transform diagonalises it. Far more than the data term, it makes the objective
    stiff: its largest eigenvalue is some thousand times its median.

    Args:
        like: displacement (1, D, *S).
        spacing: lengths of a voxel.
        weights: of the objective.
    """

    def __init__(self, like: torch.Tensor, spacing: list[float], weights: Weights) -> None:
        shape = like.shape[2:]
        self.shape, self.spacing, self.weights = shape, spacing, weights
        laplacian = like.new_zeros(())
        for k, (n, h) in enumerate(zip(shape, spacing, strict=True)):
            frequencies = torch.fft.rfftfreq if k == len(shape) - 1 else torch.fft.fftfreq
            waves = frequencies(n, dtype=like.dtype, device=like.device)
            eigenvalues = (2 * torch.sin(torch.pi * waves) / h) ** 2
            laplacian = laplacian + eigenvalues.reshape(-1, *[1] * (len(shape) - 1 - k))
        energy = weights.diffusion * laplacian + weights.bending * laplacian**2
        self.eigenvalues = torch.stack([2 * h * h / shape.numel() * energy for h in spacing])

    def solve_(self, gradient: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
        """(second derivative + data * identity)^-1 gradient, written over the gradient."""
        for k, eigenvalues in enumerate(self.eigenvalues):
            waves = torch.fft.rfftn(gradient[0, k])
            waves /= eigenvalues + data
            gradient[0, k] = torch.fft.irfftn(waves, s=self.shape)
        return gradient

    def curvature(self, step: torch.Tensor) -> torch.Tensor:
        """step^T (second derivative) step."""
        energies = deformation_energy(step, self.spacing)
        weighted = self.weights.diffusion * energies[0] + self.weights.bending * energies[1]
        return 2 * weighted[0]


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
        self.curvatures = [*self.curvatures, torch.dot(change, bend)][-self.size :]
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


def _minimise(value_and_gradient, start, regulariser, iterations, report) -> torch.Tensor:
    """L-BFGS over unfolded displacements, preconditioned with regulariser + data * identity.

    What it computes with stays where the images are; only the line search waits for it.
    """
    point, trial, direction = start, torch.empty_like(start), torch.empty_like(start)
    found, gradient = value_and_gradient(point)
    value = found.item()
    data = gradient.abs().max() / FIRST_STEP
    history = History(start)
    for iteration in range(iterations):
        _descend(gradient, history, regulariser, data, direction)
        slope, longest = torch.stack([_dot(gradient, direction), direction.abs().max()]).tolist()
        if not slope < 0:
            break
        step = min(1.0, LARGEST_STEP / longest) if len(history) else FIRST_STEP / longest
        accepted = _search(value_and_gradient, point, value, direction, slope, step, trial)
        if accepted is None:
            if not len(history):
                break
            history.clear()  # the quadratic model misled: start again from the gradient
            continue
        new_value, new_gradient = accepted
        change, _ = history.add((point, gradient), (trial, new_gradient))
        data = _data_curvature(change.view_as(point), history.curvatures[-1], regulariser, data)
        converged = value - new_value <= TOLERANCE * abs(value)
        point, trial, value = trial, point, new_value
        # Copied: what lives on between the operators' temporary memory would break it up.
        gradient.copy_(new_gradient)
        del accepted, new_gradient
        report(iteration + 1)
        if converged:
            break
    report(iterations)
    return point


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.dot(a.reshape(-1), b.reshape(-1))


def _data_curvature(change, curvature, regulariser: Regulariser, before) -> torch.Tensor:
    """What the similarity adds to the second derivative along the last step, a voxel."""
    data = curvature - regulariser.curvature(change)
    found = torch.maximum(data, SMALLEST_SHARE * curvature) / _dot(change, change)
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
        factor = torch.where(curvature > 0, torch.dot(change, flat) / curvature, 0)
        flat.addcmul_(bend, -factor)
        factors.append(factor)
    regulariser.solve_(direction, data)
    for (change, bend, curvature), factor in zip(steps, reversed(factors), strict=True):
        back = torch.where(curvature > 0, torch.dot(bend, flat) / curvature, 0)
        flat.addcmul_(change, factor - back)


def _search(value_and_gradient, point, value, direction, slope, step, trial):
    """The first shortened step that decreases the objective enough and folds nothing, or None.

    Returns its value and gradient; `trial` is where it leads.
    """
    for _ in range(20):
        torch.add(point, direction, alpha=step, out=trial)
        if not is_unfolded(trial):
            step /= 2
            continue
        found, gradient = value_and_gradient(trial)
        new_value = found.item()
        if new_value <= value + 1e-4 * step * slope:
            return new_value, gradient
        # The minimum of the parabola through what is known, within bounds; NaN takes the lower.
        parabola = -slope * step**2 / (2 * (new_value - value - step * slope))
        step = min(max(0.1 * step, parabola), 0.5 * step)
    return None
