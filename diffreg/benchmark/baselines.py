"""The operators as PyTorch's users write them, tuned: what ours are measured against.

Two forms of most, because shapes differ in which is faster; the best one of a row counts. What does
not change from call to call (identity grids, scales) is made beforehand, and torch.compile takes it
as given. Options are the operators' defaults.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from diffreg.ops.deformation_energy import THRESHOLDS

EPS = 0.02  # edge scale of both images
Function = Callable[..., torch.Tensor]
LIMIT = THRESHOLDS["hyperelastic"]
SLOPE = 2 * (LIMIT - 1) ** 3 * (LIMIT + 1) / LIMIT**3


def warp_forms(like: torch.Tensor) -> tuple[Function, Function]:
    """Both forms for displacements like this one: identity grid and scale are made here, once.

    Args:
        like: (N, 2, H, W).
    """
    height, width = like.shape[2:]
    to_unit = 2 / (height - 1), 2 / (width - 1)
    axes = (torch.linspace(-1, 1, n, dtype=like.dtype, device=like.device) for n in like.shape[2:])
    y, x = torch.meshgrid(*axes, indexing="ij")
    grid = torch.stack([x, y], dim=-1).unsqueeze(0)
    scale = torch.tensor(to_unit[::-1], dtype=like.dtype, device=like.device)

    def permuted(moving: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        points = torch.addcmul(grid, u.flip(1).permute(0, 2, 3, 1), scale)
        return F.grid_sample(moving, points, padding_mode="border", align_corners=True)

    def stacked(moving: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        along_y = torch.add(y, u[:, 0], alpha=to_unit[0])
        along_x = torch.add(x, u[:, 1], alpha=to_unit[1])
        points = torch.stack([along_x, along_y], dim=-1)
        return F.grid_sample(moving, points, padding_mode="border", align_corners=True)

    return permuted, stacked


def _corners(dy: torch.Tensor, dx: torch.Tensor) -> list[torch.Tensor]:
    """The four determinants of each cell, (N, H - 1, W - 1) each."""
    a, b = dy[:, 0] + 1, dy[:, 1]
    c, d = dx[:, 0], dx[:, 1] + 1
    return [
        a[..., i : a.shape[2] - 1 + i] * d[:, j : d.shape[1] - 1 + j]
        - b[..., i : b.shape[2] - 1 + i] * c[:, j : c.shape[1] - 1 + j]
        for i in (0, 1)
        for j in (0, 1)
    ]


def _differences(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return u[:, :, 1:] - u[:, :, :-1], u[..., 1:] - u[..., :-1]


def jacobian_determinant(u: torch.Tensor) -> torch.Tensor:
    return torch.stack(_corners(*_differences(u)), dim=1)


def _penalty(corner: torch.Tensor) -> torch.Tensor:
    above = corner.clamp(min=LIMIT)
    return ((above - 1).square() / above).square() + SLOPE * (corner.clamp(max=LIMIT) - LIMIT)


def _norm_squared(term: torch.Tensor) -> torch.Tensor:
    """Sum over components, mean over positions: one pass where squares and sum are two."""
    norm = torch.linalg.vector_norm(term, dim=(1, 2, 3))
    return norm.square() / (term.shape[2] * term.shape[3])


def _mean_square(term: torch.Tensor) -> torch.Tensor:
    return term.square().sum(dim=(1, 2, 3)) / (term.shape[2] * term.shape[3])


def _energies(u: torch.Tensor, mean: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    dy, dx = _differences(u)
    bending = mean(dy[:, :, 1:] - dy[:, :, :-1]) + mean(dx[..., 1:] - dx[..., :-1])
    mixed = mean(dy[..., 1:] - dy[..., :-1])
    penalties = [_penalty(corner).mean(dim=(1, 2)) for corner in _corners(dy, dx)]
    determinant = torch.stack(penalties).mean(dim=0)
    return torch.stack([mean(dy) + mean(dx), bending + 2 * mixed, determinant])


def energies_by_norms(u: torch.Tensor) -> torch.Tensor:
    return _energies(u, _norm_squared)


def energies_by_squares(u: torch.Tensor) -> torch.Tensor:
    return _energies(u, _mean_square)


def _central(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Twice the central differences along both axes."""
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    return (
        padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1],
        padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2],
    )


def _level_sets(pair: tuple, other: tuple, eps: float) -> torch.Tensor:
    (gy, gx), (hy, hx) = pair, other
    a = gy * gy + gx * gx + eps * eps
    b = hy * hy + hx * hx + eps * eps
    inner = (gy * hy + gx * hx).abs() + eps * eps
    return 1 - (inner * inner / (a * b)).mean(dim=(1, 2, 3))


def level_sets_by_slices(warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    return _level_sets(_central(warped), _central(fixed), 2 * EPS)


def level_sets_forms(like: torch.Tensor) -> tuple[Function, Function]:
    """Both forms for images like this one, (N, C, H, W)."""
    channels = like.shape[1]
    along = torch.tensor([-0.5, 0.0, 0.5], dtype=like.dtype, device=like.device)
    kernel = torch.zeros(2, 1, 3, 3, dtype=like.dtype, device=like.device)
    kernel[0, 0, :, 1] = along
    kernel[1, 0, 1, :] = along
    kernel = kernel.repeat(channels, 1, 1, 1)

    def gradient(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
        both = F.conv2d(padded, kernel, groups=channels)
        return both[:, 0::2], both[:, 1::2]

    def by_convolution(warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        return _level_sets(gradient(warped), gradient(fixed), EPS)

    return level_sets_by_slices, by_convolution


def gradient_scale(image: torch.Tensor) -> torch.Tensor:
    y, x = _central(image)
    squares = y * y + x * x
    edge = squares > 0
    length = torch.where(edge, torch.where(edge, squares, 1).sqrt(), 0)
    return 0.5 * length.mean(dim=(1, 2, 3))


def correlation_by_cosine(warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    w, r = warped.flatten(1), fixed.flatten(1)
    return 1 - F.cosine_similarity(w - w.mean(1, True), r - r.mean(1, True))


def correlation_by_sums(warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    w, r = warped.flatten(1), fixed.flatten(1)
    w, r = w - w.mean(1, True), r - r.mean(1, True)
    norms = torch.linalg.vector_norm(w, dim=1) * torch.linalg.vector_norm(r, dim=1)
    return 1 - (w * r).sum(1) / norms


def _separable(image: torch.Tensor) -> torch.Tensor:
    columns = F.avg_pool2d(image, (9, 1), 1, (4, 0), count_include_pad=False)
    return F.avg_pool2d(columns, (1, 9), 1, (0, 4), count_include_pad=False)


def _square_window(image: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(image, 9, 1, 4, count_include_pad=False)


def _local(warped, fixed, mean: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    w, r = warped - warped.mean(), fixed - fixed.mean()  # so that float32 does
    mean_w, mean_r = mean(w), mean(r)
    v = (mean(w * w) - mean_w * mean_w).clamp(min=1e-5)
    variance = (mean(r * r) - mean_r * mean_r).clamp(min=1e-5)
    c = mean(w * r) - mean_w * mean_r
    return 1 - (c * c / (v * variance)).mean(dim=(1, 2, 3))


def local_correlation_separable(warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    return _local(warped, fixed, _separable)


def local_correlation_square(warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    return _local(warped, fixed, _square_window)


def _among_bins(image: torch.Tensor) -> torch.Tensor:
    """Positions among 32 bins, two at each end for the windows' tails, (N, V)."""
    values = image.flatten(1)
    values = values.float() if values.dtype.itemsize == 2 else values
    low, high = values.detach().aminmax(dim=1, keepdim=True)
    return 2 + (values - low) / (high - low) * 28


def _entropy(p: torch.Tensor) -> torch.Tensor:
    return -(p * p.clamp(min=1e-30).log()).flatten(1).sum(1)


def _information(joint: torch.Tensor) -> torch.Tensor:
    """Of joint histograms (N, 32, 32), minus it."""
    p = joint / joint.sum((1, 2), True)
    return _entropy(p) - _entropy(p.sum(1)) - _entropy(p.sum(2))


def information_by_windows(warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """Every window at every bin, and a product of matrices."""
    w, box = _among_bins(warped), _among_bins(fixed.detach()).long().clamp(max=29)
    t = (torch.arange(32, device=w.device).unsqueeze(1) - w.unsqueeze(1)).abs()
    near, far = 4 - 6 * t * t + 3 * t**3, (2 - t).clamp(min=0) ** 3
    return _information(torch.where(t < 1, near, far) @ F.one_hot(box, 32).to(w.dtype))


def information_by_scatter(warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """The four bins under a window, scattered."""
    w, box = _among_bins(warped), _among_bins(fixed.detach()).long().clamp(max=29)
    cell = w.detach().long().clamp(max=29)
    f = w - cell
    g = 1 - f
    taps = torch.stack([g**3, 4 - 3 * f * f * (2 - f), 4 - 3 * g * g * (2 - g), f**3])
    rows = torch.stack([cell - 1, cell, cell + 1, cell + 2])
    joint = w.new_zeros(len(w), 32 * 32)
    for index, tap in zip(32 * rows + box, taps, strict=True):
        joint = joint.scatter_add(1, index, tap)
    return _information(joint.unflatten(1, (32, 32)))
