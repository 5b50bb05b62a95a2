"""The fields and images whose values the design fixes, on 8 x 10 voxels or 4 x 5 x 6."""

import torch

SIZE = (8, 10)
VOLUME = (4, 5, 6)


def _indices(dtype: torch.dtype, size: tuple[int, ...] = SIZE) -> tuple[torch.Tensor, ...]:
    return torch.meshgrid(*(torch.arange(n, dtype=dtype) for n in size), indexing="ij")


def displacement(dtype: torch.dtype = torch.float64, factor: float = 1.0) -> torch.Tensor:
    """(1, 2, 8, 10): u_0 = .9 sin(.7i + .4j), u_1 = .8 cos(.5i - .9j), times the factor."""
    i, j = _indices(torch.float64)
    u = torch.stack([0.9 * torch.sin(0.7 * i + 0.4 * j), 0.8 * torch.cos(0.5 * i - 0.9 * j)])
    return (factor * u).to(dtype).unsqueeze(0)


def volume_displacement() -> torch.Tensor:
    """(1, 3, 4, 5, 6): u_0 = .5 sin(.7z+.4y+.2x), .4 cos(.5z-.9y+.3x), .3 sin(.2z+.6y-.8x)."""
    z, y, x = _indices(torch.float64, VOLUME)
    u_0 = 0.5 * torch.sin(0.7 * z + 0.4 * y + 0.2 * x)
    u_1 = 0.4 * torch.cos(0.5 * z - 0.9 * y + 0.3 * x)
    u_2 = 0.3 * torch.sin(0.2 * z + 0.6 * y - 0.8 * x)
    return torch.stack([u_0, u_1, u_2]).unsqueeze(0)


def warped(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """(1, 1, 8, 10): W = .5 + .4 sin(.6i + .3j) + .1 cos(.9j)."""
    i, j = _indices(torch.float64)
    image = 0.5 + 0.4 * torch.sin(0.6 * i + 0.3 * j) + 0.1 * torch.cos(0.9 * j)
    return image.to(dtype)[None, None]


def fixed(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """(1, 1, 8, 10): R = .5 + .3 cos(.5i - .4j)."""
    i, j = _indices(torch.float64)
    return (0.5 + 0.3 * torch.cos(0.5 * i - 0.4 * j)).to(dtype)[None, None]
