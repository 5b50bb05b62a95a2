"""How good a registration is: numbers for evaluation only, in float64 and without gradients.

Images are (*S) or (1, 1, *S), displacements (D, *S) or (1, D, *S) in voxels; tensors or arrays.
`mask`, where there is one, weights the voxels: 0 outside, 1 inside; what lies outside has no say.
Called by diffreg.registration, the trainer and the report.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from diffreg.ops import jacobian_determinant

Array = torch.Tensor | np.ndarray


def ncc(warped: Array, fixed: Array, mask: Array | None = None) -> float:
    """The correlation coefficient of two images: 1 is a linear relation, -1 an inverted one.

    Args:
        warped: image, (*S) or (1, 1, *S).
        fixed: image of the same shape.
        mask: weights >= 0 of the same shape.

    Returns:
        The coefficient in [-1, 1]; nan where an image is constant or not finite.

    Raises:
        ValueError: shapes differ, an image is empty, or no voxel is inside the mask.

    Source: Pearson's correlation coefficient.

    Example:
        >>> round(ncc(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[3.0, 5.0, 4.0]])), 6)
        0.5
    """
    w, r, weight = _voxels({"warped": warped, "fixed": fixed}, mask)
    a, b = w - np.average(w, weights=weight), r - np.average(r, weights=weight)
    spread_a, spread_b = np.sum(weight * a * a), np.sum(weight * b * b)
    # The mean of a constant image is rounded: the operator `correlation` has the same bound.
    floor = (8 * np.finfo(np.float64).eps) ** 2
    if not (
        spread_a > floor * np.sum(weight * w * w) and spread_b > floor * np.sum(weight * r * r)
    ):
        return float("nan")
    cc = np.sum(weight * a * b) / (np.sqrt(spread_a) * np.sqrt(spread_b))
    return float(np.clip(cc, -1.0, 1.0))


def relative_ssd(warped: Array, fixed: Array, moving: Array, mask: Array | None = None) -> float:
    """|W - R|^2 / |T - R|^2: what is left of the squared difference, for images of one contrast.

    Args:
        warped: the moving image after the warp, (*S) or (1, 1, *S).
        fixed: image of the same shape.
        moving: the moving image before the warp, on the fixed grid, same shape.
        mask: weights >= 0 of the same shape.

    Returns:
        0 when the warp explains everything, 1 when nothing changed. Where moving equals fixed:
        inf, or nan (0 / 0) if warped equals them too.

    Raises:
        ValueError: shapes differ, an image is empty, or no voxel is inside the mask.

    Example:
        >>> relative_ssd(torch.tensor([[1.0, 1.0]]), torch.zeros(1, 2), torch.tensor([[2.0, 2.0]]))
        0.25
    """
    w, r, t, weight = _voxels({"warped": warped, "fixed": fixed, "moving": moving}, mask)
    after, before = np.sum(weight * (w - r) ** 2), np.sum(weight * (t - r) ** 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(after / before)


def mutual_information(
    warped: Array,
    fixed: Array,
    bins: int = 64,
    mask: Array | None = None,
    moving: Array | None = None,
) -> float:
    """Mutual information of two images in nats, from a joint histogram of equal bins.

    Args:
        warped: image, (*S) or (1, 1, *S).
        fixed: image of the same shape.
        bins: bins along each axis of the histogram.
        mask: weights >= 0 of the same shape.
        moving: the image whose range sets the bins of `warped`, so that before and after share
            them; values outside go into the end bins. None: `warped` itself.

    Returns:
        >= 0; 0 where an image is constant; nan where a value is not finite.

    Raises:
        ValueError: shapes differ, an image is empty, bins < 1, or no voxel is inside the mask.

    Source: Viola and Wells 1997, Maes et al. 1997; histogram estimate.

    Example:
        >>> round(mutual_information(torch.tensor([[0.0, 1.0]]), torch.tensor([[5.0, 3.0]])), 4)
        0.6931
    """
    joint = _joint_histogram(warped, fixed, bins, mask, moving)
    information = _entropy(joint.sum(1)) + _entropy(joint.sum(0)) - _entropy(joint)
    return float(np.maximum(information, 0.0))  # rounding; nan stays nan


def normalized_mutual_information(
    warped: Array,
    fixed: Array,
    bins: int = 64,
    mask: Array | None = None,
    moving: Array | None = None,
) -> float:
    """Studholme's (H(W) + H(R)) / H(W, R): 1 for independent images, 2 for one told by the other.

    Args:
        warped, fixed, bins, mask, moving: as in `mutual_information`.

    Returns:
        A value in [1, 2]; nan where both images are constant or a value is not finite.

    Raises:
        ValueError: as `mutual_information`.

    Source: Studholme, Hill and Hawkes 1999.

    Example:
        >>> normalized_mutual_information(torch.tensor([[0.0, 1.0]]), torch.tensor([[5.0, 3.0]]))
        2.0
    """
    joint = _joint_histogram(warped, fixed, bins, mask, moving)
    together = _entropy(joint)
    if not together > 0:
        return float("nan")
    return (_entropy(joint.sum(1)) + _entropy(joint.sum(0))) / together


def dice(label_a: Array, label_b: Array, labels: Iterable[int] | None = None) -> dict[int, float]:
    """The overlap 2 |A n B| / (|A| + |B|) of every label of two label maps.

    Args:
        label_a: whole numbers or booleans, (*S) or (1, 1, *S).
        label_b: of the same shape.
        labels: the labels to compare. None: every label but 0 that either map has.

    Returns:
        {label: overlap in [0, 1]}; nan for a label that neither map has.

    Raises:
        ValueError: shapes differ, a map is empty, or a value is not a whole number.

    Source: Dice 1945.

    Example:
        >>> dice(torch.tensor([[1, 1, 0]]), torch.tensor([[1, 0, 0]]))
        {1: 0.6666666666666666}
    """
    a, b, _ = _voxels({"label_a": label_a, "label_b": label_b}, None)
    for name, values in (("label_a", a), ("label_b", b)):
        if not np.array_equal(values, np.floor(values)):
            raise ValueError(f"{name} must hold whole numbers, one a label")
    if labels is None:
        labels = sorted({int(v) for v in np.union1d(a, b)} - {0})
    overlaps = {}
    for label in labels:
        in_a, in_b = a == label, b == label
        size = int(in_a.sum() + in_b.sum())
        overlaps[int(label)] = 2 * int((in_a & in_b).sum()) / size if size else float("nan")
    return overlaps


def smallest_determinant(displacement: Array) -> np.ndarray:
    """The smallest corner determinant of every cell of phi = id + u, in float64.

    Args:
        displacement: (D, *S) or (1, D, *S), voxels, component k along axis k of S.

    Returns:
        (*(S - 1)), float64; nan where a corner is nan. A cell is folded where this is not > 0.

    Raises:
        ValueError: displacement is not one displacement.

    Source: a bilinear cell is unfolded exactly when its four corners are.

    Example:
        >>> float(smallest_determinant(np.zeros((2, 2, 2)))[0, 0])
        1.0
    """
    return _corner_determinants(displacement).min(0)


def folding(displacement: Array) -> dict[str, float]:
    """Smallest and largest Jacobian determinant of all cells and corners, and how many cells fold.

    Args:
        displacement: (D, *S) or (1, D, *S), voxels, component k along axis k of S.

    Returns:
        min_determinant, max_determinant (nan where any corner is nan) and folded_percent, the
        percentage of cells whose smallest corner determinant is not > 0, nan among them. A grid
        without cells (an axis of one voxel) has nothing to fold: nan, nan, 0.

    Raises:
        ValueError: displacement is not one displacement.

    Source: all 2^D corners; forward or central differences alone overlook folds.

    Example:
        >>> folding(np.zeros((2, 8, 8)))
        {'min_determinant': 1.0, 'max_determinant': 1.0, 'folded_percent': 0.0}
    """
    corners = _corner_determinants(displacement)
    if corners.size == 0:
        smallest, largest, folded = np.nan, np.nan, 0.0
    else:
        smallest, largest = corners.min(), corners.max()
        folded = 100 * np.mean(~(corners.min(0) > 0))
    return {
        "min_determinant": float(smallest),
        "max_determinant": float(largest),
        "folded_percent": float(folded),
    }


def _corner_determinants(displacement: Array) -> np.ndarray:
    """(2^D, *(S - 1)) in float64."""
    u = torch.as_tensor(displacement).detach().to("cpu", torch.float64)
    shape = list(u.shape)
    if u.ndim >= 3 and u.shape[0] == u.ndim - 1:
        u = u[None]
    elif not (u.ndim >= 4 and u.shape[0] == 1 and u.shape[1] == u.ndim - 2):
        raise ValueError(f"displacement must be (D, *S) or (1, D, *S), got {shape}")
    return jacobian_determinant(u.contiguous())[0].numpy()


def _joint_histogram(
    warped: Array, fixed: Array, bins: int, mask: Array | None, moving: Array | None
) -> np.ndarray:
    """(bins, bins) joint probabilities; all nan where a value inside the mask is not finite."""
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    images = {"warped": warped, "fixed": fixed, "moving": warped if moving is None else moving}
    w, r, t, weight = _voxels(images, mask)
    if not (np.isfinite(w).all() and np.isfinite(r).all() and np.isfinite(t).all()):
        return np.full((bins, bins), np.nan)
    index = _bin_index(w, t, bins) * bins + _bin_index(r, r, bins)
    counts = np.bincount(index, weights=weight, minlength=bins * bins)
    return (counts / counts.sum()).reshape(bins, bins)


def _bin_index(values: np.ndarray, of_range: np.ndarray, bins: int) -> np.ndarray:
    """The bin, of equal ones over the range of `of_range`; the ends take what lies outside."""
    low, high = of_range.min(), of_range.max()
    if not high > low:
        return np.zeros(values.shape, dtype=np.int64)
    edges = np.linspace(low, high, bins + 1)
    return np.clip(np.searchsorted(edges, values, side="right") - 1, 0, bins - 1)


def _entropy(probability: np.ndarray) -> float:
    """In nats; 0 log 0 = 0, and nan stays nan."""
    p = probability[probability != 0]
    return float(-np.sum(p * np.log(p))) + 0.0


def _voxels(images: dict[str, Array], mask: Array | None) -> list[np.ndarray]:
    """The images and the mask's weights as flat float64 arrays, checked against the first image."""
    arrays = {name: _single(name, image) for name, image in images.items()}
    first, shape = next((name, array.shape) for name, array in arrays.items())
    weight = np.ones(shape) if mask is None else _single("mask", mask)
    for name, array in {**arrays, "mask": weight}.items():
        if array.shape != shape:
            raise ValueError(
                f"{name} must have the shape of {first}, {list(shape)}, got {list(array.shape)}"
            )
    if not (np.isfinite(weight).all() and (weight >= 0).all()):
        raise ValueError("mask must be finite and nowhere negative")
    if not weight.any():
        raise ValueError("mask must have a voxel inside, got none")
    inside = weight > 0  # what lies outside, nan included, has no say
    return [*(array[inside] for array in arrays.values()), weight[inside]]


def _single(name: str, image: Array) -> np.ndarray:
    """One image as float64 (*S), without the leading (1, 1)."""
    array = torch.as_tensor(image).detach().to("cpu", torch.float64).numpy()
    if array.ndim >= 4 and array.shape[:2] == (1, 1):
        array = array[0, 0]
    if not 1 <= array.ndim <= 3:
        raise ValueError(f"{name} must be one image, (*S) or (1, 1, *S), got {list(array.shape)}")
    if array.size == 0:
        raise ValueError(f"{name} must not be empty, got {list(array.shape)}")
    return array
