"""Whether an image is a label map: its values name regions and are never to be blended."""

from __future__ import annotations

import warnings

import numpy as np

from diffreg.data.geometry import Image
from diffreg.system.files import FileWarning

_FEW = 2  # values: a mask, or nothing
_ALIKE = 0.25  # share of neighbours that are equal, of the median value
_SPAN = 2**20  # values from lowest to highest that are counted rather than sorted
_LABEL = 1002  # NIfTI's intent of that name
_GREYS, _STEPS = 16, 0.55  # of more values, share of borders to the next higher or lower one


def looks_like_labels(image: Image) -> bool:
    """Whether the values are whole numbers that keep together in regions, or are said to be labels.

    Of a label most neighbours are of the same label; of a grey value hardly any are. The median
    over the values decides, so that a background, or what a window has clipped, does not. A smooth
    image has such regions too, but from each of them the next step is to the next grey value.

    Two or three grey values make the edge of a scan labels, on which both ways agree almost; specks
    of a voxel or two at the edge of an atlas make it an image. On 9,731 slices of label maps of
    heads, hearts, prostates and abdomens 5 are taken for images; of 13,232 slices of the images
    68 are taken for labels, none with more than 16 grey values.

    Args:
        image: as read, intensities or labels.

    Returns:
        False where it cannot be said, as of a constant image.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from diffreg.data.geometry import Image
        >>> from diffreg.data.labels import looks_like_labels
        >>> ramp = torch.arange(64.0).reshape(1, 1, 8, 8)
        >>> [looks_like_labels(Image(data, np.eye(4))) for data in (ramp, ramp // 32)]
        [False, True]
    """
    array = image.data[0, 0].numpy()
    if not np.array_equal(array, np.round(array)) or not np.all(np.abs(array) < 2.0**53):
        return False
    if image.header is not None and int(image.header["intent_code"]) == _LABEL:
        return True
    ranks = _ranks(array.astype(np.int64))
    count = int(ranks.max()) + 1
    if count < 3:
        return count == 2
    alike, seen = np.zeros(count), np.zeros(count)
    next_ones = borders = 0
    for axis in range(ranks.ndim):
        along = np.moveaxis(ranks, axis, 0)
        a, b = along[1:], along[:-1]
        equal = a == b
        same, ends = (np.bincount(v, minlength=count) for v in (a[equal], a[~equal]))
        alike += same
        seen += same + ends + np.bincount(b[~equal], minlength=count)
        next_ones += int(np.count_nonzero(np.abs(a - b) == 1))
        borders += int(np.count_nonzero(~equal))
    smooth = count > _GREYS and next_ones > _STEPS * borders
    return not smooth and bool(np.median(alike / np.maximum(seen, 1)) >= _ALIKE)


def doubted(image: Image) -> Image:
    """Labels as they are; a FileWarning says so where they look like the intensities of an image.

    Args:
        image: read as labels, whole numbers.

    Returns:
        The same image.
    """
    values = len(np.unique(image.data.numpy()))
    if values > _FEW and not looks_like_labels(image):
        warnings.warn(
            f"{image.name} may be an image and no labels: its {values} values do not keep together "
            "in regions",
            FileWarning,
            stacklevel=3,
        )
    return image


def _ranks(array: np.ndarray) -> np.ndarray:
    """Each value's place in the order of the values that there are, from 0."""
    if int(array.max()) - int(array.min()) >= _SPAN:
        return np.unique(array, return_inverse=True)[1].reshape(array.shape)
    offset = array - array.min()
    return (np.cumsum(np.bincount(offset.ravel()) > 0) - 1)[offset]
