"""The second derivative of the energies, and its inverse: the descent's preconditioner."""

import torch

from diffreg.losses import Weights
from diffreg.ops import deformation_energy


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
        # Of the components along axes whose voxels are so long.
        self.eigenvalues = {h: 2 * h * h / shape.numel() * energy for h in spacing}

    def solve_(self, gradient: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
        """(second derivative + data * identity)^-1 gradient, written over the gradient."""
        # A complex number by a real one takes twice as long to divide as to multiply.
        inverses = {h: (of_h + data).reciprocal_() for h, of_h in self.eigenvalues.items()}
        for component, h in zip(gradient[0], self.spacing, strict=True):
            waves = torch.fft.rfftn(component)
            waves *= inverses[h]
            component.copy_(torch.fft.irfftn(waves, s=self.shape))
        return gradient

    def curvature(self, step: torch.Tensor) -> torch.Tensor:
        """step^T (second derivative) step."""
        energies = deformation_energy(step, self.spacing)
        weighted = self.weights.diffusion * energies[0] + self.weights.bending * energies[1]
        return 2 * weighted[0]
