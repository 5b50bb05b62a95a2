"""Warping by an affine map, after a displacement or alone: out(p) = moving(M (p + u(p), 1))."""

from collections.abc import Sequence
from numbers import Integral

import torch

from diffreg.ops._autograd import differentiable, may_be_batched, needs_gradient
from diffreg.ops._checks import (
    arithmetic_dtype,
    as_handed,
    check_axes,
    check_choice,
    check_displacement,
    check_floating,
    check_image,
    check_same_device,
    check_tensor,
    in_dtype,
    refuse_transforms,
    renamed_keywords,
    widest_dtype,
)
from diffreg.ops._double_backward import gradients_of_gradients
from diffreg.ops.warp import (
    INTERPOLATIONS,
    PADDINGS,
    grid_points,
    same_bits_asked,
    sample_reference,
    warp_backward,
)


@renamed_keywords(
    mode="use interpolation='linear', 'nearest' or 'cubic'",
    padding_mode="use padding='border', 'zeros' or 'reflection'",
    align_corners="the map is from voxels to voxels, where it has no meaning",
    theta="pass matrix, (N, D, D + 1), from voxels to voxels",
    affine="pass matrix, (N, D, D + 1), from voxels to voxels",
    trf="pass matrix, (N, D, D + 1), from voxels to voxels",
    M="pass matrix, (N, D, D + 1), from fixed voxels to moving voxels, a row for each tensor axis",
    normalized="the map is from voxels to voxels",
    zero_centered="the map is from voxels to voxels, counted from the first one",
    reverse_indexing="row k of matrix is along tensor axis 2 + k",
    grid="pass matrix and, where there is one, displacement",
    output_shape="use size, the spatial axes alone",
    spatial_size="use size",
    dsize="use size",
    image="use moving",
    ddf="use displacement",
    flow="use displacement",
)
def affine_warp(
    moving: torch.Tensor,
    matrix: torch.Tensor,
    displacement: torch.Tensor | None = None,
    size: Sequence[int] | None = None,
    interpolation: str = "linear",
    padding: str = "border",
) -> torch.Tensor:
    """Samples an image once through an affine map: out(p) = moving(M (p + displacement(p), 1)).

    Convention: pull-back, from the fixed grid to the moving image; integer p is a voxel centre;
    row k of the map is along tensor axis 2 + k. No array of points is made. A point that is not
    finite gives NaN in value and gradient, but an upstream gradient of 0 passes nothing on.

    Points are computed in double and rounded once to the dtype: to 3e-5 voxels up to coordinate
    1024 and to 1.2e-4 up to 4096 in float32. A map of whole numbers gives the very voxels.

    Args:
        moving: image (N, C, *S_moving), any floating dtype; any dtype at all with "nearest". One
            image (1, C, *S_moving) is read by all N maps.
        matrix: (N, D, D + 1), float64 or float32: fixed voxels -> moving voxels, the last column
            being where the voxel 0 lands. D = 2 or 3.
        displacement: (N, D, *S), in voxels of the fixed grid, any floating dtype; None: 0.
        size: of the fixed grid, D numbers, where there is no displacement to have it from.
        interpolation: "linear"; "nearest", floor(point + 1/2), without gradient to `matrix` and
            `displacement`; or "cubic", the separable kernel of Keys with a = -0.75.
        padding: "border" repeats the outermost voxels, "zeros" reads 0 outside, "reflection"
            mirrors about the outermost voxel centres, with period 2 (n - 1).

    Returns:
        The image on the fixed grid, (N, C, *S), in the dtype of `moving`. Half types are computed
        in float32. Gradients go to all three tensors; that to `moving` takes as much memory as a
        displacement, the others none but their own.

    Raises:
        TypeError: not tensors, or a dtype that is not supported.
        ValueError: shapes, devices or options that do not fit.
        NotImplementedError: forward-mode AD, or a device without kernels.

    Source:
        Spatial transformer (Jaderberg et al. 2015), in voxel units; Keys 1981 for "cubic".

    Example:
        >>> import torch
        >>> from diffreg.ops import affine_warp
        >>> image = torch.tensor([[[[0.0, 1.0, 2.0, 3.0]]]])
        >>> back_to_front = torch.tensor([[[1.0, 0.0, 0.0], [0.0, -1.0, 3.0]]])
        >>> affine_warp(image, back_to_front, size=(1, 4))
        tensor([[[[3., 2., 1., 0.]]]])
    """
    _check(moving, matrix, displacement, size, interpolation, padding)
    refuse_transforms("affine_warp")
    image, field = moving, displacement
    if displacement is None:
        image = as_handed(moving)[0] if moving.is_floating_point() else moving
    elif moving.is_floating_point():
        image, field = as_handed(moving, displacement)
    else:  # labels are copied as they are
        (field,) = as_handed(displacement)
    if len(image) != len(matrix) and _is_mapped(matrix):  # vmap takes what has all samples
        image = image.expand(len(matrix), *image.shape[1:])
    asked = () if displacement is not None else tuple(size or ())
    map_ = in_dtype(matrix, widest_dtype(matrix))
    return in_dtype(_operator(image, map_, field, asked, interpolation, padding), moving.dtype)


def _is_mapped(tensor: torch.Tensor) -> bool:
    return not torch.compiler.is_compiling() and may_be_batched(tensor)


def _check(
    moving: torch.Tensor,
    matrix: torch.Tensor,
    displacement: torch.Tensor | None,
    size: Sequence[int] | None,
    interpolation: str,
    padding: str,
) -> None:
    check_choice("interpolation", interpolation, INTERPOLATIONS)
    check_choice("padding", padding, PADDINGS)
    check_image("moving", moving, any_dtype=interpolation == "nearest")
    _check_matrix(matrix, moving)
    on_grid = _fixed_size(displacement, size, moving.ndim - 2)
    if displacement is not None:
        check_displacement(displacement)
        check_axes("displacement", displacement, "moving", moving)
        check_same_device("displacement", displacement, "moving", moving)
        if len(displacement) != len(matrix):
            raise ValueError(
                f"displacement must have the batch size of matrix, {len(matrix)}, got "
                f"{len(displacement)}"
            )
    if 0 in moving.shape[2:] and len(matrix) > 0 and 0 not in on_grid:
        raise ValueError(f"moving must have voxels to read, got shape {list(moving.shape)}")
    if needs_gradient(moving):
        check_floating("moving that requires a gradient", moving)


def _check_matrix(matrix: torch.Tensor, moving: torch.Tensor) -> None:
    check_tensor("matrix", matrix)
    dimensions = moving.ndim - 2
    if matrix.ndim != 3 or tuple(matrix.shape[1:]) != (dimensions, dimensions + 1):
        raise ValueError(
            f"matrix must be (N, {dimensions}, {dimensions + 1}), from voxels to voxels of "
            f"moving, got {list(matrix.shape)}"
        )
    if matrix.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"matrix must be float64 or float32, got {matrix.dtype}")
    check_same_device("matrix", matrix, "moving", moving)
    if len(moving) not in (1, len(matrix)):
        raise ValueError(
            f"moving must have the batch size of matrix, {len(matrix)}, or 1, got {len(moving)}"
        )


def _fixed_size(
    displacement: torch.Tensor | None, size: Sequence[int] | None, dimensions: int
) -> Sequence[int]:
    """The size of the fixed grid."""
    if displacement is None:
        sizes = list(size) if isinstance(size, Sequence) else []
        whole = all(isinstance(n, Integral | torch.SymInt | torch.Tensor) for n in sizes)
        if len(sizes) != dimensions or not whole or min(sizes) < 0:
            raise ValueError(
                f"size must be {dimensions} whole numbers, the fixed grid's, where there is no "
                f"displacement, got {size}"
            )
        return sizes
    check_tensor("displacement", displacement)
    if size is not None and tuple(size) != tuple(displacement.shape[2:]):
        raise ValueError(
            f"size must be that of displacement, {list(displacement.shape[2:])}, or left out, got "
            f"{list(size)}"
        )
    return displacement.shape[2:]


def affine_warp_reference(
    moving: torch.Tensor,
    matrix: torch.Tensor,
    displacement: torch.Tensor | None = None,
    size: Sequence[int] | None = None,
    interpolation: str = "linear",
    padding: str = "border",
) -> torch.Tensor:
    """`affine_warp` in plain PyTorch: the weighted sum over the voxels around a point, in float64.

    A device without float64 computes in float32.

    Args, Returns: as `affine_warp`.
    """
    on_grid = _fixed_size(displacement, size, moving.ndim - 2)
    points = _points(matrix.to(widest_dtype(matrix)), displacement, on_grid)
    # A point that is not finite along one axis is not finite.
    points = points + (points.detach() * 0).sum(1, keepdim=True)
    image = moving.expand(len(matrix), *moving.shape[1:])
    return sample_reference(image, points, interpolation, padding).to(moving.dtype)


def _points(
    matrix: torch.Tensor, displacement: torch.Tensor | None, size: Sequence[int]
) -> torch.Tensor:
    """Where voxels land, (N, D, *size), in float64."""
    voxels = grid_points(torch.Size(size), matrix).unsqueeze(0)
    if displacement is not None:
        voxels = voxels + displacement
    linear, origin = matrix[..., :-1], matrix[..., -1]
    moved = linear @ voxels.flatten(2).to(linear.dtype) + origin.unsqueeze(-1)
    return moved.unflatten(2, tuple(size))


@torch.library.register_fake("diffreg::affine_warp")
def _affine_warp_fake(moving, matrix, displacement, size, interpolation, padding):
    on_grid = size if displacement is None else displacement.shape[2:]
    return moving.new_empty((matrix.shape[0], moving.shape[1], *on_grid))


@torch.library.register_fake("diffreg::affine_warp_backward")
def _affine_warp_backward_fake(
    gradient,
    moving,
    matrix,
    displacement,
    size,
    interpolation,
    padding,
    need_matrix,
    need_displacement,
):
    return (
        matrix.new_empty(matrix.shape if need_matrix else (0,)),
        moving.new_empty(displacement.shape if need_displacement else (0,)),
    )


def _setup_context(ctx, inputs, output):
    moving, matrix, displacement, *ctx.options = inputs
    ctx.save_for_backward(moving, matrix, displacement)


def _backward(ctx, gradient):
    refuse_transforms("affine_warp")
    need_moving, need_matrix, need_displacement = ctx.needs_input_grad[:3]
    moving, matrix, displacement = ctx.saved_tensors
    if not moving.is_floating_point() or (
        displacement is not None and moving.dtype != displacement.dtype
    ):  # "nearest" of labels: no gradient but 0
        zeros = (torch.zeros_like(t) if t is not None else None for t in (matrix, displacement))
        return None, *zeros, None, None, None
    to_moving = to_matrix = to_displacement = None
    if need_moving:
        to_moving = _gradient_to_moving(ctx, gradient, moving, matrix, displacement)
    if need_matrix or need_displacement:
        to_matrix, to_displacement = _operator_backward(
            gradient,
            moving,
            matrix,
            displacement,
            *ctx.options,
            need_matrix,
            need_displacement,
        )
    return (
        to_moving,
        to_matrix if need_matrix else None,
        to_displacement if need_displacement else None,
        None,
        None,
        None,
    )


def _gradient_to_moving(ctx, gradient, moving, matrix, displacement):
    """By warp's own scatter: the one place where an array of the grid is made."""
    size = gradient.shape[2:]
    total = _points(matrix, displacement, size) - grid_points(size, matrix)
    # Not finite along one axis is not finite, as in the kernels.
    total = total + (total.detach() * 0).sum(1, keepdim=True)
    image = moving.expand(len(matrix), *moving.shape[1:])
    wide = arithmetic_dtype(moving)  # no half type holds a displacement of a hundred voxels
    tensors = gradient.to(wide), image.to(wide), total.to(wide)
    found, _ = warp_backward(*tensors, *ctx.options[1:], True, False, same_bits_asked())
    if len(moving) < len(matrix):
        found = found.sum(0, keepdim=True)
    return found.to(moving.dtype)


def _setup_double_context(ctx, inputs, output):
    *tensors, size, interpolation, padding, _, _ = inputs
    ctx.options = size or None, interpolation, padding
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _double_backward(ctx, to_matrix, to_displacement):
    refuse_transforms("affine_warp")
    gradient, *inputs = (tensor for tensor in ctx.saved_tensors if tensor is not None)

    def reference(moving, matrix, u=None):
        return affine_warp_reference(moving, matrix, u, *ctx.options)

    (to_gradient,), to_inputs = gradients_of_gradients(
        reference, inputs, [gradient], [None, to_matrix, to_displacement][: len(inputs)]
    )
    return (to_gradient, *to_inputs, *[None] * (8 - len(inputs)))


_operator = differentiable("affine_warp", _backward, _setup_context)
_operator_backward = differentiable("affine_warp_backward", _double_backward, _setup_double_context)
