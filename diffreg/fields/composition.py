"""Displacement and velocity fields (N, D, *S), D = 2 or 3, in voxels: compose, integrate, invert,
resize."""

from collections.abc import Sequence
from numbers import Integral

import torch
import torch.nn.functional as F

from diffreg.ops import warp
from diffreg.ops._checks import check_axes, check_displacement, renamed_keywords
from diffreg.ops._per_axis import per_axis


def identity_grid(
    shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> torch.Tensor:
    """Voxel positions p.

    Args:
        shape: *S, (H, W) or (Z, H, W).
        dtype, device: of the result.

    Returns:
        (1, D, *S); component k is the index along axis 2 + k.

    Example:
        >>> from diffreg.fields import identity_grid
        >>> identity_grid((1, 3))[0, 1]
        tensor([[0., 1., 2.]])
    """
    if len(shape) not in (2, 3):
        raise ValueError(f"shape must be (H, W) or (D, H, W), got {tuple(shape)}")
    axes = [torch.arange(n, dtype=dtype, device=device) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).unsqueeze(0)


def compose(outer: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    """Displacement of phi_outer o phi_inner: u(p) = inner(p) + outer(p + inner(p)).

    warp(warp(image, outer), inner) samples the same points as warp(image, compose(outer, inner)).

    Args:
        outer: (N, D, *S_outer), voxels, D = 2 or 3; repeated at its border.
        inner: (N, D, *S), voxels of the grid of `outer`.

    Returns:
        (N, D, *S), voxels.

    Raises:
        TypeError, ValueError: as `diffreg.ops.warp`.

    Example:
        >>> import torch
        >>> from diffreg.fields import compose
        >>> one = torch.ones(1, 2, 3, 3)
        >>> compose(one, 2 * one).unique()
        tensor([3.])
    """
    check_displacement(inner)
    check_displacement(outer)
    check_axes("outer", outer, "inner", inner)
    return inner + warp(outer, inner)


@renamed_keywords(
    num_steps="use steps",
    nsteps="use steps",
    dvf="use velocity",
    padding_mode="the border is repeated",
)
def integrate(velocity: torch.Tensor, steps: int = 7) -> torch.Tensor:
    """Displacement of the flow of a stationary velocity at time 1, by scaling and squaring.

    Args:
        velocity: (N, D, *S), voxels per unit time, D = 2 or 3.
        steps: squarings; the first step is velocity / 2**steps.

    Returns:
        (N, D, *S), voxels.

    Raises:
        ValueError: `steps` that are no whole number >= 0, or a shape that is not a field's.

    Source:
        Arsigny et al. 2006, scaling and squaring.

    Example:
        >>> import torch
        >>> from diffreg.fields import integrate
        >>> integrate(torch.ones(1, 2, 4, 4)).unique()
        tensor([1.])
    """
    check_displacement(velocity)
    _check_count("steps", steps)
    displacement = velocity / 2**steps
    for _ in range(steps):
        displacement = compose(displacement, displacement)
    return displacement


def _check_count(name: str, count: int) -> None:
    if not isinstance(count, Integral) or count < 0:
        raise ValueError(f"{name} must be a whole number >= 0, got {count!r}")


def invert(displacement: torch.Tensor, iterations: int = 30) -> torch.Tensor:
    """Displacement of the inverse of id + displacement, by the fixed point v(p) = -u(p + v(p)).

    Args:
        displacement: (N, D, *S), voxels, D = 2 or 3. The iteration converges where the field
            changes by less than a voxel a voxel; how well it did is compose(displacement, inverse),
            0 when exact.
        iterations: fixed-point steps.

    Returns:
        (N, D, *S), voxels.

    Raises:
        TypeError, ValueError: as `diffreg.ops.warp`, or `iterations` that are no whole number >= 0.

    Source:
        Chen et al. 2008, fixed-point inversion.

    Example:
        >>> import torch
        >>> from diffreg.fields import invert
        >>> invert(torch.ones(1, 2, 4, 4)).unique()
        tensor([-1.])
    """
    check_displacement(displacement)
    _check_count("iterations", iterations)
    inverse = -displacement
    for _ in range(iterations):
        inverse = -warp(displacement, inverse)
    return inverse


def inversion_residual(displacement: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """How far the two are from cancelling: the largest |u(p + v(p)) + v(p)| of each sample.

    Args:
        displacement: (N, D, *S), voxels, D = 2 or 3.
        inverse: (N, D, *S), as `invert` gives it.

    Returns:
        (N,), voxels; 0 where the inverse is exact. Near the border it counts points that the
        displacement takes outside the grid, where its border value holds.

    Raises:
        TypeError, ValueError: as `diffreg.ops.warp`.

    Example:
        >>> import torch
        >>> from diffreg.fields import inversion_residual, invert
        >>> inversion_residual(torch.ones(1, 2, 4, 4), invert(torch.ones(1, 2, 4, 4)))
        tensor([0.])
    """
    return compose(displacement, inverse).norm(dim=1).flatten(1).amax(1)


def warp_points(points: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
    """Where a displacement takes points: p + u(p), linear between voxels.

    From the fixed grid to the moving image, as the pull-back of `warp`: points of the moving image
    are brought to the fixed one by the inverse, `warp_points(points, invert(displacement))`.

    Args:
        points: (N, K, D), voxels, component k along axis k of S. Outside the grid the displacement
            of its border holds.
        displacement: (N, D, *S), voxels, of the same dtype, D = 2 or 3.

    Returns:
        (N, K, D), voxels; differentiable to both.

    Raises:
        TypeError, ValueError: a displacement that is none, or points that do not fit.

    Example:
        >>> import torch
        >>> from diffreg.fields import warp_points
        >>> warp_points(torch.tensor([[[1.0, 2.5]]]), torch.ones(1, 2, 4, 4))
        tensor([[[2.0000, 3.5000]]])
    """
    check_displacement(displacement)
    samples, dimensions = displacement.shape[:2]
    if points.dtype != displacement.dtype:
        raise TypeError(
            f"points must be of displacement's {displacement.dtype}, got {points.dtype}"
        )
    if points.ndim != 3 or points.shape[0] != samples or points.shape[2] != dimensions:
        raise ValueError(f"points must be ({samples}, K, {dimensions}), got {list(points.shape)}")
    return points + _at(displacement, points)


def _at(field: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """u(p), (N, K, D): its gradient is sorted, not added in the order in which a GPU finishes."""
    sizes = field.shape[2:]
    ends = per_axis([size - 1 for size in sizes], points)
    inside = torch.where(points > ends, ends, points.clamp(min=0))
    low = torch.minimum(inside.detach().floor(), (ends - 1).clamp(min=0)).nan_to_num(0)
    share = inside - low
    index, weight = torch.zeros_like(low[..., :1]).long(), torch.ones_like(low[..., :1])
    for axis, size in enumerate(sizes):
        first, part = low[..., axis, None].long().clamp(max=size - 1), share[..., axis, None]
        along = torch.cat([first, (first + 1).clamp(max=size - 1)], 2)
        index = (index[..., None] * size + along[..., None, :]).flatten(2)
        weight = (weight[..., None] * torch.cat([1 - part, part], 2)[..., None, :]).flatten(2)
    samples = torch.arange(len(field), device=field.device)[:, None, None]
    values = field.flatten(2).mT[samples, index]  # (N, K, 2^D, D)
    return (weight[..., None] * values).sum(2)


def resize(displacement: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The field on a grid of another size over the same extent, its components rescaled.

    Args:
        displacement: (N, D, *S), voxels, D = 2 or 3.
        shape: new *S; half-voxel centres, so that the outer edges of both grids coincide.

    Returns:
        (N, D, *shape), voxels of the new grid.

    Raises:
        ValueError: a shape that is not one size per axis.

    Example:
        >>> import torch
        >>> from diffreg.fields import resize
        >>> resize(torch.ones(1, 2, 4, 4), (8, 2))[0, :, 0, 0]
        tensor([2.0000, 0.5000])
    """
    check_displacement(displacement)
    sizes = displacement.shape[2:]
    if not isinstance(shape, Sequence) or len(shape) != len(sizes) or min(shape) < 1:
        raise ValueError(f"shape must be {len(sizes)} sizes of at least 1, got {shape}")
    factors = [new / old for new, old in zip(shape, sizes, strict=True)]
    scale = per_axis(factors, displacement).reshape(1, -1, *[1] * len(sizes))
    mode = "bilinear" if len(sizes) == 2 else "trilinear"
    resized = F.interpolate(displacement, size=tuple(shape), mode=mode, align_corners=False)
    return resized * scale
