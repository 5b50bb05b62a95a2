"""The operators as PyTorch's users write them, tuned: what ours are measured against.

Several forms of most, because shapes differ in which is faster; the best one of a row counts. What
does not change from call to call (identity grids, scales, counts) is made beforehand, and
torch.compile takes it as given. Options are the operators' defaults. All take images and volumes.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F

from diffreg.ops.deformation_energy import THRESHOLDS

EPS = 0.02  # edge scale of both images
WINDOW = 9  # of local correlation
Function = Callable[..., torch.Tensor]
Terms = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
LIMIT = THRESHOLDS["hyperelastic"]
SLOPE = 2 * (LIMIT - 1) ** 3 * (LIMIT + 1) / LIMIT**3


def warp_forms(like: torch.Tensor) -> tuple[Function, Function]:
    """Both forms by grid_sample for displacements like this one, made once.

    Args:
        like: (N, D, *S).
    """
    sizes, dimensions = like.shape[2:], like.shape[1]
    to_unit = [2 / (n - 1) for n in sizes]
    axes = (torch.linspace(-1, 1, n, dtype=like.dtype, device=like.device) for n in sizes)
    identity = torch.meshgrid(*axes, indexing="ij")
    grid = torch.stack(identity[::-1], dim=-1).unsqueeze(0)
    scale = torch.tensor(to_unit[::-1], dtype=like.dtype, device=like.device)

    def permuted(moving: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        points = torch.addcmul(grid, u.flip(1).movedim(1, -1), scale)
        return F.grid_sample(moving, points, padding_mode="border", align_corners=True)

    def stacked(moving: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        along = [torch.add(identity[k], u[:, k], alpha=to_unit[k]) for k in range(dimensions)]
        points = torch.stack(along[::-1], dim=-1)
        return F.grid_sample(moving, points, padding_mode="border", align_corners=True)

    return permuted, stacked


def warp_by_gathers(like: torch.Tensor) -> Function:
    """The form that torch.compile makes most of: corners by their place in the flat image.

    Args:
        like: (N, D, *S); the moving image has this grid too.
    """
    sizes = like.shape[2:]
    axes = (torch.arange(n, dtype=like.dtype, device=like.device) for n in sizes)
    identity = torch.meshgrid(*axes, indexing="ij")
    strides = [math.prod(sizes[k + 1 :]) for k in range(len(sizes))]

    def gathered(moving: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        flat = moving.flatten(2)
        place = torch.zeros_like(u[:, 0], dtype=torch.int64)
        fractions = []
        for k, size in enumerate(sizes):
            point = (identity[k] + u[:, k]).clamp(0, size - 1)
            low = point.detach().floor().clamp(max=size - 2)
            fractions.append((point - low).flatten(1).unsqueeze(1))
            place = place + low.to(torch.int64) * strides[k]
        first = place.flatten(1).unsqueeze(1)
        values = [
            flat.gather(2, (first + offset).expand(-1, flat.shape[1], -1))
            for offset in (
                sum(end * stride for end, stride in zip(corner, strides, strict=True))
                for corner in itertools.product((0, 1), repeat=len(sizes))
            )
        ]
        for fraction in reversed(fractions):  # the last axis' ends are neighbours in the list
            pairs = zip(values[::2], values[1::2], strict=True)
            values = [torch.lerp(low, high, fraction) for low, high in pairs]
        return values[0].unflatten(2, sizes)

    return gathered


def affine_forms(like: torch.Tensor) -> tuple[Function, Function]:
    """Both forms for images like this one, on whose own grid the map leads; made once.

    Args:
        like: (N, C, *S).
    """
    sizes = like.shape[2:]
    scale = torch.tensor([2 / (n - 1) for n in sizes], dtype=like.dtype, device=like.device)
    axes = (torch.arange(n, dtype=like.dtype, device=like.device) for n in sizes)
    voxels = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)

    def by_affine_grid(moving: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        linear, origin = matrix[..., :-1].to(moving.dtype), matrix[..., -1].to(moving.dtype)
        centre = (linear / scale).sum(2) + origin
        rows = [linear * scale.unsqueeze(1) / scale, (scale * centre - 1).unsqueeze(-1)]
        theta = torch.cat([rows[0].flip(1, 2), rows[1].flip(1)], 2)
        grid = F.affine_grid(theta, list(moving.shape), align_corners=True)
        return F.grid_sample(moving, grid, padding_mode="border", align_corners=True)

    def by_points(moving: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        linear, origin = matrix[..., :-1].to(moving.dtype), matrix[..., -1:].to(moving.dtype)
        points = (linear @ voxels + origin) * scale.unsqueeze(1) - 1
        grid = points.flip(1).mT.unflatten(1, sizes)
        return F.grid_sample(moving, grid, padding_mode="border", align_corners=True)

    return by_affine_grid, by_points


def affine_by_gathers(like: torch.Tensor) -> Function:
    """The form that torch.compile makes most of, by that of warp.

    Args:
        like: (N, C, *S).
    """
    sizes = like.shape[2:]
    axes = (torch.arange(n, dtype=like.dtype, device=like.device) for n in sizes)
    voxels = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    warp = warp_by_gathers(voxels.unsqueeze(0))

    def gathered(moving: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        linear, origin = matrix[..., :-1].to(moving.dtype), matrix[..., -1:].to(moving.dtype)
        points = (linear @ voxels.flatten(1) + origin).unflatten(2, sizes)
        return warp(moving, points - voxels)

    return gathered


def _total(terms: Iterable[torch.Tensor]) -> torch.Tensor:
    """Their sum; sum() would begin with 0 + the first, a pass more."""
    return functools.reduce(torch.add, terms)


def _along(image: torch.Tensor, axis: int, begin: int, end: int | None) -> torch.Tensor:
    """A slice of one spatial axis."""
    return image[(slice(None),) * (2 + axis) + (slice(begin, end),)]


def _differences(u: torch.Tensor) -> list[torch.Tensor]:
    return [_along(u, k, 1, None) - _along(u, k, 0, -1) for k in range(u.ndim - 2)]


def _corners(differences: list[torch.Tensor]) -> list[torch.Tensor]:
    """The determinants of each cell at its corners, (N, *(S-1)) each, the first axis fastest."""
    edges = [list(along.unbind(1)) for along in differences]
    for k, along in enumerate(edges):
        along[k] = along[k] + 1

    def at(component: torch.Tensor, axis: int, end: int) -> torch.Tensor:
        """Of one end of the cells along an axis: of edges that run along another."""
        return component.narrow(1 + axis, end, component.shape[1 + axis] - 1)

    if len(edges) == 2:
        (a, b), (c, d) = edges
        return [
            at(a, 1, j) * at(d, 0, i) - at(b, 1, j) * at(c, 0, i) for j in (0, 1) for i in (0, 1)
        ]
    determinants = {}
    e, f, g = edges
    for i, j in itertools.product((0, 1), repeat=2):
        # e x f of a vertex serves the cells on both of its sides along the last axis.
        p, q = [at(part, 1, j) for part in e], [at(part, 0, i) for part in f]
        normal = [p[m] * q[n] - p[n] * q[m] for m, n in ((1, 2), (2, 0), (0, 1))]
        third = [at(at(part, 1, j), 0, i) for part in g]
        for k in (0, 1):
            sides = [at(part, 2, k) for part in normal]
            determinants[k, j, i] = _total(s * t for s, t in zip(sides, third, strict=True))
    return [determinants[key] for key in sorted(determinants)]


def jacobian_determinant(u: torch.Tensor) -> torch.Tensor:
    return torch.stack(_corners(_differences(u)), dim=1)


def smallest_determinant(u: torch.Tensor) -> torch.Tensor:
    """Of each cell's corners."""
    return functools.reduce(torch.minimum, _corners(_differences(u)))


def _penalty(corner: torch.Tensor) -> torch.Tensor:
    above = corner.clamp(min=LIMIT)
    return ((above - 1).square() / above).square() + SLOPE * (corner.clamp(max=LIMIT) - LIMIT)


def _spatial(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(range(1, tensor.ndim))


def _norm_squared(term: torch.Tensor) -> torch.Tensor:
    """Sum over components, mean over positions: one pass where squares and sum are two."""
    norm = torch.linalg.vector_norm(term, dim=_spatial(term))
    return norm.square() / term.shape[2:].numel()


def _mean_square(term: torch.Tensor) -> torch.Tensor:
    return term.square().sum(dim=_spatial(term)) / term.shape[2:].numel()


def _energies(u: torch.Tensor, mean: Callable[[torch.Tensor], torch.Tensor]) -> Terms:
    first = _differences(u)
    bending = []
    for k, along in enumerate(first):
        for other in range(k, len(first)):
            second = _along(along, other, 1, None) - _along(along, other, 0, -1)
            bending.append((1 if other == k else 2) * mean(second))
    penalties = [_penalty(corner).mean(dim=_spatial(corner)) for corner in _corners(first)]
    determinant = torch.stack(penalties).mean(dim=0)
    return _total(map(mean, first)), _total(bending), determinant


def energies_by_norms(u: torch.Tensor) -> Terms:
    return _energies(u, _norm_squared)


def energies_by_squares(u: torch.Tensor) -> Terms:
    return _energies(u, _mean_square)


def _central(image: torch.Tensor) -> list[torch.Tensor]:
    """Twice the central differences along each axis."""
    axes = range(image.ndim - 2)
    padded = F.pad(image, (1, 1) * len(axes), mode="replicate")
    found = []
    for k in axes:
        line = padded
        for other in axes:
            line = line if other == k else _along(line, other, 1, -1)
        found.append(_along(line, k, 2, None) - _along(line, k, 0, -2))
    return found


def _product(pair: list[torch.Tensor], other: list[torch.Tensor]) -> torch.Tensor:
    return _total(a * b for a, b in zip(pair, other, strict=True))


def _level_sets(pair: list, other: list, eps: float) -> torch.Tensor:
    a, b = _product(pair, pair) + eps * eps, _product(other, other) + eps * eps
    inner = _product(pair, other).abs() + eps * eps
    return 1 - (inner * inner / (a * b)).mean(dim=_spatial(a))


def level_sets_by_slices(warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    return _level_sets(_central(warped), _central(fixed), 2 * EPS)


def level_sets_forms(like: torch.Tensor) -> tuple[Function, Function]:
    """Both forms for images like this one, (N, C, *S)."""
    channels, dimensions = like.shape[1], like.ndim - 2
    along = torch.tensor([-0.5, 0.0, 0.5], dtype=like.dtype, device=like.device)
    kernel = torch.zeros(dimensions, 1, *[3] * dimensions, dtype=like.dtype, device=like.device)
    for k in range(dimensions):
        kernel[k, 0].movedim(k, -1)[(1,) * (dimensions - 1)] = along
    kernel = kernel.repeat(channels, *[1] * (dimensions + 1))
    convolve: Function = F.conv3d if dimensions == 3 else F.conv2d

    def gradient(image: torch.Tensor) -> list[torch.Tensor]:
        padded = F.pad(image, (1, 1) * dimensions, mode="replicate")
        every = convolve(padded, kernel, groups=channels)
        return [every[:, k::dimensions] for k in range(dimensions)]

    def by_convolution(warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        return _level_sets(gradient(warped), gradient(fixed), EPS)

    return level_sets_by_slices, by_convolution


def gradient_scale(image: torch.Tensor) -> torch.Tensor:
    differences = _central(image)
    squares = _product(differences, differences)
    edge = squares > 0
    length = torch.where(edge, torch.where(edge, squares, 1).sqrt(), 0)
    return 0.5 * length.mean(dim=_spatial(image))


def correlation_by_cosine(warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    w, r = warped.flatten(1), fixed.flatten(1)
    return 1 - F.cosine_similarity(w - w.mean(1, True), r - r.mean(1, True))


def correlation_by_sums(warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    w, r = warped.flatten(1), fixed.flatten(1)
    w, r = w - w.mean(1, True), r - r.mean(1, True)
    norms = torch.linalg.vector_norm(w, dim=1) * torch.linalg.vector_norm(r, dim=1)
    return 1 - (w * r).sum(1) / norms


def _box_sum(image: torch.Tensor) -> torch.Tensor:
    """Sums over windows of 9 = 8 + 1, each length twice the last one's: four additions an axis."""
    axes = range(image.ndim - 2)
    total = F.pad(image, (WINDOW // 2, WINDOW // 2) * len(axes))
    for k in axes:
        line = total
        for length in (1, 2, 4):
            line = _along(line, k, 0, -length) + _along(line, k, length, None)
        total = _along(line, k, 0, -1) + _along(total, k, WINDOW - 1, None)
    return total


def _pooled(image: torch.Tensor) -> torch.Tensor:
    """Means over windows, an axis at a time."""
    axes = range(image.ndim - 2)
    pool: Function = F.avg_pool3d if len(axes) == 3 else F.avg_pool2d
    for k in axes:
        window = [WINDOW if k == other else 1 for other in axes]
        padding = [n // 2 for n in window]
        image = pool(image, window, 1, padding, count_include_pad=False)
    return image


def _local(warped, fixed, mean: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    w, r = warped - warped.mean(), fixed - fixed.mean()  # so that float32 does
    mean_w, mean_r = mean(w), mean(r)
    v = (mean(w * w) - mean_w * mean_w).clamp(min=1e-5)
    variance = (mean(r * r) - mean_r * mean_r).clamp(min=1e-5)
    c = mean(w * r) - mean_w * mean_r
    return 1 - (c * c / (v * variance)).mean(dim=_spatial(warped))


def local_correlation_forms(like: torch.Tensor) -> tuple[Function, Function]:
    """By doubling, and by pooling, for images like this one, (N, C, *S)."""
    share = 1 / _box_sum(torch.ones_like(like[:1, :1]))

    def by_doubling(warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        return _local(warped, fixed, lambda image: _box_sum(image) * share)

    def by_pooling(warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        return _local(warped, fixed, _pooled)

    return by_doubling, by_pooling


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
