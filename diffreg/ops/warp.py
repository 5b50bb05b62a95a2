"""Warping by a displacement in voxels: W(p) = moving(p + u(p))."""

import functools
import itertools

import torch

from diffreg.ops._autograd import differentiable, needs_gradient
from diffreg.ops._checks import (
    as_handed,
    check_axes,
    check_choice,
    check_displacement,
    check_floating,
    check_image,
    check_same_device,
    in_dtype,
    refuse_transforms,
    renamed_keywords,
)
from diffreg.ops._double_backward import gradients_of_gradients
from diffreg.ops._per_axis import per_axis

INTERPOLATIONS = ("linear", "nearest", "cubic")
PADDINGS = ("border", "zeros", "reflection")
KEYS = -0.75  # the parameter of the cubic kernel


@renamed_keywords(
    mode="use interpolation='linear', 'nearest' or 'cubic'",
    padding_mode="use padding='border', 'zeros' or 'reflection'",
    align_corners="displacements are in voxels, where it has no meaning",
    grid="pass displacement, (N, D, *S) in voxels",
    ddf="use displacement",
    flow="use displacement",
    trf="use displacement",
    image="use moving",
)
def warp(
    moving: torch.Tensor,
    displacement: torch.Tensor,
    interpolation: str = "linear",
    padding: str = "border",
) -> torch.Tensor:
    """Warps an image by a displacement field: warped(p) = moving(p + displacement(p)).

    Convention: pull-back, from the fixed grid to the moving image; integer p is a voxel centre;
    component k displaces along tensor axis 2 + k, in voxels. A displacement that is not finite
    gives NaN in value and gradient, but an upstream gradient of 0 passes nothing on: a loss may
    leave out what reads NaN.

    Args:
        moving: image (N, C, *S_moving), any floating dtype; any dtype at all with "nearest".
        displacement: (N, D, *S), voxels of the moving grid, any floating dtype. D = 2 or 3.
        interpolation: "linear"; "nearest", floor(p + 1/2), without gradient to `displacement`; or
            "cubic", the separable kernel of Keys with a = -0.75.
        padding: "border" repeats the outermost voxels, "zeros" reads 0 outside, "reflection"
            mirrors about the outermost voxel centres, with period 2 (n - 1); an axis of one voxel
            is that voxel.

    Returns:
        The warped image (N, C, *S), in the dtype of `moving`. Half types are computed in float32.

    Raises:
        TypeError: not tensors, or a dtype that is not supported.
        ValueError: shapes, devices or options that do not fit.
        NotImplementedError: forward-mode AD, or a device without kernels.

    Source:
        Spatial transformer (Jaderberg et al. 2015), in voxel units; Keys 1981 for "cubic".

    Example:
        >>> import torch
        >>> from diffreg.ops import warp
        >>> image = torch.tensor([[[[0.0, 1.0, 2.0, 3.0]]]])
        >>> half_a_voxel = torch.tensor([0.0, 0.5]).reshape(1, 2, 1, 1).expand(1, 2, 1, 4)
        >>> warp(image, half_a_voxel)
        tensor([[[[0.5000, 1.5000, 2.5000, 3.0000]]]])
    """
    _check(moving, displacement, interpolation, padding)
    refuse_transforms("warp")
    if moving.is_floating_point():
        image, field = as_handed(moving, displacement)
    else:  # labels are copied as they are
        image, (field,) = moving, as_handed(displacement)
    warped = _operator(image, field, interpolation, padding)
    return in_dtype(warped, moving.dtype)


def _check(
    moving: torch.Tensor, displacement: torch.Tensor, interpolation: str, padding: str
) -> None:
    check_choice("interpolation", interpolation, INTERPOLATIONS)
    check_choice("padding", padding, PADDINGS)
    check_displacement(displacement)
    check_image("moving", moving, any_dtype=interpolation == "nearest")
    check_axes("displacement", displacement, "moving", moving)
    if moving.shape[0] != displacement.shape[0]:
        raise ValueError(
            f"displacement must have the batch size of moving, {moving.shape[0]}, got "
            f"{displacement.shape[0]}"
        )
    if 0 in moving.shape[2:] and 0 not in displacement.shape:
        raise ValueError(f"moving must have voxels to read, got shape {list(moving.shape)}")
    check_same_device("displacement", displacement, "moving", moving)
    if needs_gradient(moving):
        check_floating("moving that requires a gradient", moving)


def warp_reference(
    moving: torch.Tensor,
    displacement: torch.Tensor,
    interpolation: str = "linear",
    padding: str = "border",
) -> torch.Tensor:
    """`warp` in plain PyTorch: the weighted sum over the 2**D, or 4**D, voxels around p + u(p).

    Args, Returns: as `warp`.
    """
    points = grid_points(displacement.shape[2:], displacement) + displacement
    return sample_reference(moving, points, interpolation, padding)


def grid_points(size: torch.Size, like: torch.Tensor) -> torch.Tensor:
    """Voxel centres (D, *size), in the dtype and on the device of `like`."""
    axes = [torch.arange(n, dtype=like.dtype, device=like.device) for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def sample_reference(
    moving: torch.Tensor,
    points: torch.Tensor,
    interpolation: str,
    padding: str,
    spill: bool = True,
) -> torch.Tensor:
    """The image at points (N, D, *S) of its grid, in voxels.

    Voxels of weight 0 that are not finite make NaN where they may `spill`, and else are 0.
    """
    if interpolation == "nearest":
        return _nearest_reference(moving, points.detach(), padding)
    taps = _cubic_taps if interpolation == "cubic" else _linear_taps
    along = [taps(points[:, k], size, padding) for k, size in enumerate(moving.shape[2:])]
    total = torch.zeros_like(points[:, :1])
    for corner in itertools.product(*along):
        weight = functools.reduce(torch.mul, [weight for _, weight in corner]).unsqueeze(1)
        values = _gather(moving, [index for index, _ in corner])
        if not spill:
            values = values.masked_fill((weight == 0) & ~torch.isfinite(values), 0)
        total = total + weight * values
    return total


def _gather(moving: torch.Tensor, indices: list[torch.Tensor]) -> torch.Tensor:
    """Voxels (N, C, *S) of moving at indices[k], (N, *S) each, held inside the image."""
    flat = torch.zeros_like(indices[0], dtype=torch.int64)
    for index, size in zip(indices, moving.shape[2:], strict=True):
        flat = flat * size + torch.nan_to_num(index).clamp(0, size - 1).to(torch.int64)
    rows = flat.flatten(1).unsqueeze(1).expand(-1, moving.shape[1], -1)
    return moving.flatten(2).gather(2, rows).unflatten(2, flat.shape[1:])


def _mirrored(point: torch.Tensor, size: int) -> torch.Tensor:
    """A coordinate mirrored about the outermost voxel centres until it lies in the axis."""
    if size == 1:
        return point * 0
    period = 2.0 * (size - 1)
    within = point - period * torch.floor(point.detach() / period)
    return torch.where(within > size - 1, period - within, within)


def _linear_taps(
    point: torch.Tensor, size: int, padding: str
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The two voxels of one axis beside a coordinate, (index, weight)."""
    finite = torch.isfinite(point)
    if padding == "reflection":
        point = _mirrored(point, size)
    if padding != "zeros":
        # Constant on and beyond the outermost voxel centres: no gradient passes there.
        held = point.detach().clamp(0, size - 1)
        point = torch.where((point > 0) & (point < size - 1) | ~finite, point, held)
    low = torch.floor(point.detach())
    fraction = (point - low) * torch.where(finite, 1.0, torch.nan).to(point.dtype)
    taps = []
    for index, weight in ((low, 1 - fraction), (low + 1, fraction)):
        inside = (index >= 0) & (index <= size - 1)
        drop = finite & ~inside if padding == "zeros" else torch.zeros_like(finite)
        taps.append((index, torch.where(drop, torch.zeros_like(weight), weight)))
    return taps


def _cubic_taps(
    point: torch.Tensor, size: int, padding: str
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The four voxels of one axis around a coordinate, (index, weight)."""
    finite = torch.isfinite(point)
    if padding == "reflection":
        point = _mirrored(point, size)
    low = torch.floor(point.detach())
    t = (point - low) * torch.where(finite, 1.0, torch.nan).to(point.dtype)
    taps = []
    for k, distance in enumerate((t + 1, t, 1 - t, 2 - t)):
        index = low + (k - 1)
        inside = (index >= 0) & (index <= size - 1)
        drop = finite & ~inside if padding == "zeros" else torch.zeros_like(finite)
        weight = _keys(distance, near=k in (1, 2))
        held = _mirrored(index, size) if padding == "reflection" else index
        taps.append((held, torch.where(drop, torch.zeros_like(weight), weight)))
    return taps


def _keys(d: torch.Tensor, near: bool) -> torch.Tensor:
    """The cubic kernel at distances of at most 1 (near), or of 1 to 2."""
    if near:
        return ((KEYS + 2) * d - (KEYS + 3)) * d * d + 1
    return ((d - 5) * d + 8) * d * KEYS - 4 * KEYS


def _nearest_reference(moving: torch.Tensor, points: torch.Tensor, padding: str) -> torch.Tensor:
    if padding == "reflection":
        along = zip(points.unbind(1), moving.shape[2:], strict=True)
        points = torch.stack([_mirrored(point, size) for point, size in along], 1)
    rounded = torch.floor(points + 0.5)
    finite = torch.isfinite(points).all(1, keepdim=True)
    values = _gather(moving, list(rounded.unbind(1)))
    if padding == "zeros":
        last = per_axis([size - 1 for size in moving.shape[2:]], points)
        last = last.reshape(1, -1, *[1] * (points.ndim - 2))
        inside = ((rounded >= 0) & (rounded <= last)).all(1, keepdim=True)
        values = torch.where(inside, values, torch.zeros_like(values))
    unknown = torch.nan if moving.is_floating_point() or moving.is_complex() else 0
    return torch.where(finite, values, torch.full_like(values, unknown))


@torch.library.register_fake("diffreg::warp")
def _warp_fake(moving, displacement, interpolation, padding):
    return moving.new_empty((*moving.shape[:2], *displacement.shape[2:]))


@torch.library.register_fake("diffreg::warp_backward")
def _warp_backward_fake(
    gradient,
    moving,
    displacement,
    interpolation,
    padding,
    need_moving,
    need_displacement,
    deterministic=False,
):
    return (
        moving.new_empty(moving.shape if need_moving else (0,)),
        displacement.new_empty(displacement.shape if need_displacement else (0,)),
    )


def same_bits_asked() -> bool:
    """Whether the gradient to moving, which a GPU adds up in any order else, is to be the same at
    every run: by torch.use_deterministic_algorithms, or by what asks cuDNN alone for that."""
    return torch.are_deterministic_algorithms_enabled() or torch.backends.cudnn.deterministic


def _setup_context(ctx, inputs, output):
    moving, displacement, ctx.interpolation, ctx.padding = inputs
    ctx.save_for_backward(moving, displacement)


def _backward(ctx, gradient):
    refuse_transforms("warp")
    needs = ctx.needs_input_grad[:2]
    moving, displacement = ctx.saved_tensors
    if moving.dtype != displacement.dtype:  # "nearest" of labels: no gradient but 0
        return None, torch.zeros_like(displacement), None, None
    gradients = warp_backward(
        gradient, moving, displacement, ctx.interpolation, ctx.padding, *needs, same_bits_asked()
    )
    return (*(g if need else None for g, need in zip(gradients, needs, strict=True)), None, None)


def _setup_double_context(ctx, inputs, output):
    gradient, moving, displacement, ctx.interpolation, ctx.padding, *_ = inputs
    ctx.save_for_backward(gradient, moving, displacement)
    ctx.set_materialize_grads(False)


def _double_backward(ctx, *grad_gradients):
    refuse_transforms("warp")
    gradient, *inputs = ctx.saved_tensors
    (to_gradient,), to_inputs = gradients_of_gradients(
        lambda moving, u: warp_reference(moving, u, ctx.interpolation, ctx.padding),
        inputs,
        [gradient],
        grad_gradients,
    )
    return (to_gradient, *to_inputs, *[None] * 5)


_operator = differentiable("warp", _backward, _setup_context)
warp_backward = differentiable("warp_backward", _double_backward, _setup_double_context)
