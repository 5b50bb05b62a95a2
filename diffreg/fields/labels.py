"""Label maps under a displacement: every voxel gets a label that was there, never a mean of two."""

import torch

from diffreg.ops import warp
from diffreg.ops._checks import arithmetic_dtype, check_choice, check_image

INTERPOLATIONS = ("linear", "nearest")


def warp_labels(
    labels: torch.Tensor,
    displacement: torch.Tensor,
    interpolation: str = "nearest",
    padding: str = "border",
) -> torch.Tensor:
    """Warps a label map by a displacement field, with the convention of `diffreg.ops.warp`.

    "linear" warps the indicator of each label and takes the label of the largest weight; at a tie,
    the smaller label. Boundaries come out smoother than with "nearest", for a warp a label. Not
    differentiable.

    Args:
        labels: (N, 1, *S_moving), any integer or floating dtype; 0 is a label as the others.
        displacement: (N, D, *S), voxels of the labels' grid, any floating dtype. D = 2 or 3.
        interpolation: "nearest" or "linear".
        padding: "border" repeats the outermost voxels, "zeros" reads 0, the background, outside,
            "reflection" mirrors about the outermost voxel centres; as in `diffreg.ops.warp`.

    Returns:
        (N, 1, *S), in the dtype of `labels`. Where the displacement is not finite NaN, or 0 in an
        integer dtype.

    Raises:
        TypeError, ValueError: as `diffreg.ops.warp`; labels of several channels, NaN or complex.

    Source:
        Schaerer, Roche and Belaroussi 2014, generic interpolator for multi-label images.

    Example:
        >>> import torch
        >>> from diffreg.fields import warp_labels
        >>> row = torch.tensor([[[[0, 7, 7, 250]]]])
        >>> step = torch.tensor([0.0, 0.75]).reshape(1, 2, 1, 1).expand(1, 2, 1, 4)
        >>> warp_labels(row, step, "linear")
        tensor([[[[  7,   7, 250, 250]]]])
    """
    check_choice("interpolation", interpolation, INTERPOLATIONS)
    check_image("labels", labels, any_dtype=True)
    if labels.shape[1] != 1:
        raise ValueError(f"labels must be (N, 1, *S), got {list(labels.shape)}")
    if labels.is_complex():
        raise TypeError(f"labels must be integers or floating, got {labels.dtype}")
    if labels.is_floating_point() and bool(labels.isnan().any()):
        raise ValueError("labels must be numbers, some are NaN")
    labels, displacement = labels.detach(), displacement.detach()
    # Says where the displacement is not finite; anywhere else some label's weight takes its place.
    warped = warp(labels, displacement, "nearest", padding)
    if interpolation == "nearest":
        return warped
    dtype = arithmetic_dtype(displacement)
    largest = torch.full_like(warped, -1, dtype=dtype)
    for label in torch.cat([labels.flatten(), labels.new_zeros(1)]).unique():  # ascending
        outside = float(padding == "zeros" and label == 0)
        weight = warp((labels == label).to(dtype) - outside, displacement, padding=padding)
        weight += outside
        warped = torch.where(weight > largest, label, warped)
        largest = torch.maximum(largest, weight)
    return warped
