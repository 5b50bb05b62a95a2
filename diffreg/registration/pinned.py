"""The descent's preconditioner where landmarks pull.

A pull is at a few voxels and strong. Taken for what the images say of every voxel, it would move
those voxels alone, until their cells are about to fold: so the part of the identity is that of the
images, and the second derivative of the energies carries a pull into its neighbourhood.
"""

import torch

from diffreg.losses import Weights
from diffreg.registration.descent import FIRST_STEP, ValueAndGradient
from diffreg.registration.landmarks import Pins, Pull
from diffreg.registration.regulariser import Regulariser

LEAST = 1e-2  # of the largest eigenvalue, where the images say nothing


class Pinned(Regulariser):
    """As `Regulariser`, with the second derivative of the landmarks' term in `curvature`.

    Args:
        like: displacement (1, D, *S), where the descent starts.
        spacing, weights: as in `Regulariser`.
        of_images: the objective without the landmarks.
        pull: of the landmarks.
    """

    def __init__(
        self,
        like: torch.Tensor,
        spacing: list[float],
        weights: Weights,
        of_images: ValueAndGradient,
        pull: Pull,
    ) -> None:
        super().__init__(like, spacing, weights)
        self.pull = pull
        data = of_images(like)[1].abs().max() / FIRST_STEP
        largest = torch.stack([of_h.max() for of_h in self.eigenvalues.values()]).max()
        self.most = torch.maximum(data, LEAST * largest)

    def solve_(self, gradient: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
        return super().solve_(gradient, torch.minimum(data, self.most))

    def curvature(self, step: torch.Tensor) -> torch.Tensor:
        return super().curvature(step) + self.pull.curvature(step)


def pinned(
    of_images: ValueAndGradient,
    pins: Pins | None,
    like: torch.Tensor,
    spacing: list[float],
    weights: Weights,
) -> tuple[ValueAndGradient, Regulariser]:
    """What is minimised with the landmarks, and what the descent is preconditioned with.

    Args:
        of_images: the objective without the landmarks.
        pins: the landmarks on this grid, or None.
        like, spacing, weights: as in `Regulariser`.
    """
    if pins is None:
        return of_images, Regulariser(like, spacing, weights)
    pull = Pull(pins, like)
    return pulled(of_images, pull), Pinned(like, spacing, weights, of_images, pull)


def pulled(of_images: ValueAndGradient, pull: Pull) -> ValueAndGradient:
    """With the landmarks' term.

    Example: `pulled(of_images, Pull(pins, displacement))`
    """

    def evaluate(displacement: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value, gradient = of_images(displacement)
        return value + pull.add(displacement, gradient), gradient

    return evaluate
