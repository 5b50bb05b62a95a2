"""Displacements that the tests of this folder draw."""

import torch
import torch.nn.functional as F

from diffreg.fields import identity_grid


def smooth(size, amplitude, seed, coarse=6):
    generator = torch.Generator().manual_seed(seed)
    field = torch.randn(1, len(size), *[coarse] * len(size), generator=generator)
    mode = "bicubic" if len(size) == 2 else "trilinear"
    field = F.interpolate(field, size=size, mode=mode)
    return field * amplitude / field.abs().max()


def checkerboard(size, amplitude):
    i, j = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    u = torch.zeros(1, 2, size, size)
    u[0, 0] = amplitude * (-1.0) ** (i + j)
    return u


def turned(size, angle):
    """The grid wound into a ring: no cell folds, and its ends lie one on the other."""
    grid = identity_grid((size, size), torch.float64)
    radius, phi = 2 * size + grid[0, 0], angle * grid[0, 1] / (size - 1)
    image = torch.stack([radius * torch.cos(phi), radius * torch.sin(phi)])
    return image[None] - grid
