"""torch.ops.diffreg.* in plain PyTorch, for any device, where there is no compiled core.

A forward operator is its reference, a backward operator what torch's autograd makes of it. Schemas,
shapes, gradients, vmap and errors are those of the compiled operators; not bits, speed and memory.
"""

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from diffreg.ops._checks import widest_dtype
from diffreg.ops._core import PLAIN_LIBRARY
from diffreg.ops._objective import REFERENCES, WINDOW, compose_raw, scaled
from diffreg.ops.affine_warp import _points, affine_warp_reference
from diffreg.ops.correlation import correlation_reference
from diffreg.ops.deformation_energy import deformation_energy_reference
from diffreg.ops.gradient_scale import gradient_scale_reference
from diffreg.ops.jacobian_determinant import jacobian_determinant_reference
from diffreg.ops.local_correlation import local_correlation_reference
from diffreg.ops.mutual_information import cubic, flattened, minus_information, positions, ranges_of
from diffreg.ops.parallel_level_sets import _with_scales_reference
from diffreg.ops.warp import grid_points, sample_reference


def _implements(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Registers the operator of the function's name; results do not depend on strides."""

    @functools.wraps(operator)
    def kernel(*arguments: Any) -> Any:
        return operator(*(_plain(a) if isinstance(a, Tensor) else a for a in arguments))

    PLAIN_LIBRARY.impl(operator.__name__, kernel, "CompositeExplicitAutograd")
    return operator


def _plain(tensor: Tensor) -> Tensor:
    """Contiguous, and one that autograd may save."""
    if tensor.is_inference():
        with torch.inference_mode(False):
            return tensor.clone(memory_format=torch.contiguous_format)
    return tensor.contiguous()


def _recording() -> Any:
    """torch's autograd, which is shut off within an operator, in inference mode or not."""
    return torch.inference_mode(False)


def _gradients(
    function: Callable[..., Any],
    inputs: Sequence[Tensor],
    upstream: Sequence[Tensor | None],
    needs: Sequence[bool] | None = None,
) -> tuple[Tensor, ...]:
    """Of sum_i <upstream[i], function(*inputs)[i]> to the inputs; (0,) to those without a need."""
    needs = [True] * len(inputs) if needs is None else needs
    if not any(needs):
        return tuple(t.new_empty(0) for t in inputs)
    with _recording():
        points = [tensor.detach() for tensor in inputs]
        asked = [p.requires_grad_() for p, need in zip(points, needs, strict=True) if need]
        values = function(*points)
        values = (values,) if isinstance(values, Tensor) else values
        pairs = [(v, g) for v, g in zip(values, upstream, strict=True) if g is not None]
        kept = [(v, g) for v, g in pairs if v.requires_grad]  # "nearest" has no gradient to points
        outputs, weights = [v for v, _ in kept], [g for _, g in kept]
        found = iter(
            torch.autograd.grad(outputs, asked, weights, allow_unused=True, materialize_grads=True)
        )
    return tuple(
        next(found) if need else p.new_empty(0) for p, need in zip(points, needs, strict=True)
    )


@_implements
def warp(moving, displacement, interpolation="linear", padding="border"):
    points = grid_points(displacement.shape[2:], displacement) + displacement
    return sample_reference(moving, points, interpolation, padding, spill=False)


@_implements
def warp_backward(
    gradient, moving, displacement, interpolation, padding, need_moving, need_displacement,
    deterministic=False,
):  # fmt: skip
    points = grid_points(displacement.shape[2:], displacement) + displacement
    points = points + (points * 0).sum(1, keepdim=True)  # not finite along one axis is not finite
    how = interpolation, padding
    return _sampling_gradients(gradient, moving, points, how, need_moving, need_displacement)


def _sampling_gradients(gradient, moving, points, how, need_moving, need_points):
    """To an image and to the points (N, D, *S) where it is read.

    A channel is a sample of its own: where its upstream gradient is 0 nothing is passed on, not
    even of what is not finite.
    """
    samples, channels = gradient.shape[:2]
    gradient = gradient.flatten(0, 1).unsqueeze(1)
    silent = gradient == 0
    places = points.repeat_interleave(channels, 0).masked_fill(silent, 0)
    to_moving, to_points = _gradients(
        lambda image, at: sample_reference(image, at, *how),
        [moving.flatten(0, 1).unsqueeze(1), places],
        [gradient],
        [need_moving, need_points],
    )
    if need_points:
        to_points = to_points.masked_fill(silent, 0).unflatten(0, (samples, channels)).sum(1)
    return to_moving.reshape(moving.shape) if need_moving else to_moving, to_points


@_implements
def affine_warp(moving, matrix, displacement, size, interpolation, padding):
    asked = size if displacement is None else None
    return affine_warp_reference(moving, matrix, displacement, asked, interpolation, padding)


@_implements
def affine_warp_backward(
    gradient, moving, matrix, displacement, size, interpolation, padding, need_matrix,
    need_displacement,
):  # fmt: skip
    """By the gradient to the points M (p + u(p), 1): linear in M and in u."""
    on_grid = gradient.shape[2:]
    points = _points(matrix, displacement, on_grid)
    points = points + (points * 0).sum(1, keepdim=True)
    image = moving.expand(len(matrix), *moving.shape[1:])
    how = interpolation, padding
    _, to_points = _sampling_gradients(gradient.to(matrix.dtype), image, points, how, False, True)
    voxels = grid_points(on_grid, matrix).unsqueeze(0)
    voxels = voxels.expand_as(to_points) if displacement is None else voxels + displacement
    silent = (gradient == 0).all(1, keepdim=True)
    to_points, voxels = to_points.flatten(2), voxels.masked_fill(silent, 0).flatten(2)
    to_matrix, to_displacement = matrix.new_empty(0), moving.new_empty(0)
    if need_matrix:
        of_linear = to_points @ voxels.to(matrix.dtype).mT
        to_matrix = torch.cat([of_linear, to_points.sum(2, keepdim=True)], 2)
    if need_displacement:
        through = (matrix[..., :-1].mT @ to_points).unflatten(2, on_grid)
        to_displacement = through.masked_fill(silent, 0).to(moving.dtype)
    return to_matrix, to_displacement


@_implements
def deformation_energy(displacement, spacing, penalty, threshold):
    limit = None if penalty == "relu" else threshold
    return tuple(deformation_energy_reference(displacement, spacing, penalty, limit))


@_implements
def deformation_energy_backward(
    grad_diffusion, grad_bending, grad_determinant, displacement, *options
):
    upstream = grad_diffusion, grad_bending, grad_determinant
    (found,) = _gradients(lambda u: deformation_energy(u, *options), [displacement], upstream)
    return found + 0 * displacement  # NaN where the field is: torch's clamp hides it


@_implements
def jacobian_determinant(displacement, reduce):
    return jacobian_determinant_reference(displacement, None if reduce == "none" else reduce)


@_implements
def jacobian_determinant_backward(gradient, displacement, reduce):
    (found,) = _gradients(lambda u: jacobian_determinant(u, reduce), [displacement], [gradient])
    return found


@_implements
def gradient_scale(image, eta, mask):
    return gradient_scale_reference(image, eta, mask)


@_implements
def gradient_scale_backward(gradient, image, eta, mask):
    (found,) = _gradients(lambda i: gradient_scale(i, eta, mask), [image], [gradient])
    return found


@_implements
def correlation(warped, fixed, mask):
    """The moments are for the compiled backward operator: here it takes none."""
    moments = warped.new_zeros((len(warped), 5), dtype=widest_dtype(warped))
    return correlation_reference(warped, fixed, mask), moments


@_implements
def correlation_backward(gradient, moments, warped, fixed, mask, need_warped, need_fixed):
    needs = need_warped, need_fixed
    return _gradients(
        lambda w, r: correlation_reference(w, r, mask), [warped, fixed], [gradient], needs
    )


@_implements
def local_correlation(warped, fixed, window, mask):
    return local_correlation_reference(warped, fixed, window, mask)


@_implements
def local_correlation_backward(gradient, warped, fixed, window, mask, need_warped, need_fixed):
    needs = need_warped, need_fixed
    return _gradients(
        lambda w, r: local_correlation_reference(w, r, window, mask),
        [warped, fixed],
        [gradient],
        needs,
    )


@_implements
def parallel_level_sets(warped, fixed, *options):
    return _with_scales_reference(warped, fixed, *options)


@_implements
def parallel_level_sets_backward(
    gradient, warped, fixed, eps_warped, eps_fixed, variant, mask, need_warped, need_fixed
):
    options = eps_warped, eps_fixed, variant, mask
    needs = need_warped, need_fixed
    return _gradients(
        lambda w, r: _with_scales_reference(w, r, *options), [warped, fixed], [gradient], needs
    )


@_implements
def mutual_information(warped, fixed, bins, mask, moving):
    images = flattened(warped, fixed, mask)
    ranges = ranges_of(*images, moving)
    unknown = (0 * images[0] + 0 * images[1]).sum(1).reshape(-1, 1, 1)  # NaN: one is not finite
    counts = _joint_histogram(*images, ranges, bins) + unknown
    return minus_information(counts).to(ranges.dtype), counts, ranges.to(counts.dtype)


@_implements
def mutual_information_backward(gradient, histograms, ranges, warped, fixed, bins, mask, moving):
    w, *constants = flattened(warped, fixed, mask)
    (slopes,) = _gradients(minus_information, [histograms], [gradient.to(histograms.dtype)])
    constants += [ranges.to(w.dtype), bins]
    (found,) = _gradients(lambda image: _joint_histogram(image, *constants), [w], [slopes])
    return found.reshape(warped.shape).to(warped.dtype)


def _joint_histogram(warped, fixed, weight, ranges, bins):
    """That of the reference, by the four bins that a window reaches: a tenth of its time."""
    place = positions(warped, ranges[:, :2], bins)
    first = place.detach().nan_to_num().floor() - 1
    reached = first.unsqueeze(2) + torch.arange(4, device=first.device)
    windows = cubic(reached - place.unsqueeze(2)) * weight.unsqueeze(2)
    box = positions(fixed, ranges[:, 2:], bins).nan_to_num().floor().clamp(2, bins - 3) - 2
    # Outside the window is 0, or NaN where an image is.
    cells = (box.unsqueeze(2) * bins + reached.clamp(0, bins - 1)).long()
    empty = warped.new_zeros((len(warped), (bins - 4) * bins), dtype=widest_dtype(warped))
    counts = empty.scatter_add(1, cells.flatten(1), windows.flatten(1).to(empty.dtype))
    return counts.unflatten(1, (bins - 4, bins))


PARTS = REFERENCES._replace(warp=warp)


@_implements
def registration_objective(
    moving, fixed, displacement, eps_moving, eps_fixed, mask, mixture, weights, padding, spacing,
    penalty, threshold, need_gradient, need_warped, window=WINDOW,
):  # fmt: skip
    constants = eps_moving, eps_fixed, mask, mixture, weights, padding, spacing, penalty, threshold
    gradient = displacement.new_empty(0)
    with _recording() if need_gradient else nullcontext():
        u = displacement.detach().requires_grad_(need_gradient)
        terms = compose_raw(PARTS, moving, fixed, u, *constants, window)
        if need_gradient:
            (gradient,) = torch.autograd.grad(terms.total.sum(), u)
    *values, warped = (term.detach() for term in terms if term is not None)
    return *values, warped if need_warped else warped.new_empty(0), gradient


@_implements
def registration_objective_backward(
    grad_total, grad_similarity, grad_diffusion, grad_bending, grad_determinant, moving, fixed,
    displacement, eps_moving, eps_fixed, *constants,
):  # fmt: skip
    upstream = grad_total, grad_similarity, grad_diffusion, grad_bending, grad_determinant

    def gradient(moving, fixed, *scales):
        def terms(u):
            return compose_raw(PARTS, moving, fixed, u, *scales, *constants)[:5]

        return _gradients(terms, [displacement], upstream)[0]

    images = moving, fixed, eps_moving, eps_fixed
    zeros = displacement.new_zeros(len(displacement))
    of_total, of_similarity = (zeros if g is None else g for g in upstream[:2])
    weighed = constants[2][0] * of_total + of_similarity != 0
    if weighed.all():
        return gradient(*images)
    # Where nobody weighs the similarity it is one of flat images: 0 times NaN would be NaN.
    flat = (x if x is None else torch.ones_like(x) for x in images)
    by = weighed.reshape(-1, *[1] * (displacement.ndim - 1))
    return torch.where(by, gradient(*images), gradient(*flat))


def registration_objective_scale(tensor, factor):
    tensor.copy_(scaled(tensor, factor))


PLAIN_LIBRARY.impl(
    "registration_objective_scale", registration_objective_scale, "CompositeExplicitAutograd"
)
