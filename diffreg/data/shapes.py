"""Pairs to train on that need no image: labels drawn from noise, in two contrasts, bent two ways.

s = argmax_j noise_j        one label map, or one that is given
s_k = s o phi_k             k = moving, fixed: two random diffeomorphisms
I_k = bias_k * blurred(mean_k[s_k] + deviation_k[s_k] * noise), normalised

The displacement that brings the moving image onto the fixed one is known: phi_m^-1 o phi_f.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from diffreg.data.folders import folder_images, folder_labels
from diffreg.data.images import read_image
from diffreg.data.labels import doubted
from diffreg.data.synthetic import smooth_noise
from diffreg.fields import compose, integrate
from diffreg.ops import warp

_STEPS = 6  # squarings
_DEVIATION = 0.1  # of the noise within a label, at most; means lie in [0, 1]
_BIAS, _BLUR, _GAMMA = 0.3, 1.0, 0.25  # of the logarithm; voxels; of the logarithm of the exponent
_COARSE = 0.2  # share of images whose resolution is lower along one axis
_LARGEST = 4  # times a voxel
_KNOTS = 8  # of a curve
_TRIES = 16  # windows


class Shapes(Dataset):
    """Pairs of random shapes in random contrasts, with their labels and the true displacement.

    A network that trains on them with the overlap of the labels sees no contrast twice, and so
    depends on none.

    Args:
        size: *S, two or three axes.
        labels: shapes of a label map.
        scale: of the shapes, and of the warps: standard deviation of the noise's Gaussian, voxels.
        scales: of the warps, whose noise is then the sum of noises of these scales, as strong as
            each other.
        amplitude: standard deviation of the velocities' components at most, voxels.
        maps: label maps, whole numbers from 0, to draw from in place of noise: arrays, files of
            labels, or a folder of such files (those named as labels, as `_seg`, if there are any).
            Of one that is larger than S another window is drawn each time. 0 is the background,
            whose mean is 0 in half of the images and whose displacement is NaN: it shows nothing
            by which it could be found. Or arrays (2, *) of one place in two heads, say, of which
            each image shows one: then nothing of the displacement is known.
        images: of each map, arrays of its shape, in [0, 1]; half of the samples take their
            intensities from these by random curves, and not from labels.
        alike: share of the pairs whose images have one contrast, which is learned first.
        seed: sample k is a function of (seed, k).
        length: samples.

    Raises:
        ValueError: sizes, numbers or maps that do not fit.

    Source:
        Hoffmann et al. 2022, SynthMorph: the idea, and the order of what is drawn.

    Example:
        >>> from diffreg.data.shapes import Shapes
        >>> sample = Shapes(size=(24, 32), labels=4, length=10)[3]
        >>> {name: tuple(values.shape) for name, values in sample.items()}["displacement"]
        (2, 24, 32)
    """

    def __init__(
        self,
        size: Sequence[int] = (96, 96, 96),
        labels: int = 16,
        scale: float = 12.0,
        amplitude: float = 3.0,
        scales: Sequence[float] = (),
        maps: str | Path | Sequence[np.ndarray | str | Path] = (),
        images: Sequence[np.ndarray] = (),
        alike: float = 0.0,
        seed: int = 0,
        length: int = 2**20,
    ) -> None:
        if len(size) not in (2, 3) or min(size) < 4:
            raise ValueError(f"size must be two or three numbers of at least 4, got {tuple(size)}")
        if labels < 2 or not scale > 0 or not amplitude >= 0 or length < 1 or not 0 <= alike <= 1:
            raise ValueError(
                "labels must be at least 2, scale > 0, amplitude >= 0, length at least 1 and alike "
                f"in [0, 1], got {labels}, {scale}, {amplitude}, {length}, {alike}"
            )
        self.maps = [_checked(name, array, tuple(size)) for name, array in _read(maps)]
        if not all(0 < each < np.inf for each in scales):
            raise ValueError(f"scales must be numbers > 0 of voxels, got {tuple(scales)}")
        self.images = [torch.from_numpy(np.asarray(image, np.float32)) for image in images]
        if self.images and [i.shape for i in self.images] != [m.shape for m in self.maps]:
            raise ValueError("images must be as many as maps, and of their size")
        for number, image in enumerate(self.images):
            if not (image.min() >= 0 and image.max() <= 1):
                raise ValueError(
                    f"images[{number}] must be in [0, 1], got {image.min():g} to {image.max():g}"
                )
        self.size, self.labels = tuple(size), labels
        # What each batch has a channel for (docs/training.md).
        most = max(int(found.max()) for found in self.maps) if self.maps else labels - 1
        self.label_values = range(1, most + 1)
        self.scale, self.amplitude = float(scale), float(amplitude)
        self.scales = tuple(map(float, scales)) or (self.scale,)
        self.alike, self.seed, self.length = alike, seed, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """moving, fixed (1, *S) in [0, 1]; their labels (1, *S), int64; displacement (D, *S)."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        random = np.random.default_rng([self.seed, index])
        labels, image = self._map(random)
        velocity = torch.stack(
            [self._velocity(s, random) for s in self.amplitude * random.random(2)]
        )
        bent = integrate(velocity, _STEPS)
        back = integrate(-velocity[:1], _STEPS)
        both = warp(labels[:, None], bent, "nearest")
        count = int(labels.max()) + 1
        contrasts = [
            self._means(count, random) if image is None else self._curve(random) for _ in both
        ]
        if random.random() < self.alike:
            contrasts = 2 * contrasts[:1]
        given = both if image is None else warp(image[:, None], bent)
        images = [
            self._scanned(contrast(shapes[0]), random)
            for shapes, contrast in zip(given, contrasts, strict=True)
        ]
        displacement = compose(back, bent[1:])[0]
        if self.maps:
            other = not torch.equal(*labels)
            displacement[:, (both[1][0] == 0) | other] = torch.nan
        return {
            "moving": images[0][None],
            "fixed": images[1][None],
            "moving_label": both[0],
            "fixed_label": both[1],
            "displacement": displacement,
        }

    def _map(self, random: np.random.Generator) -> tuple[Tensor, Tensor | None]:
        """Label maps (2, *S), int64, and in half of the cases their images, mirrored at random."""
        image = None
        if self.maps:
            number = int(random.integers(len(self.maps)))
            found = self.maps[number]
            if self.images and random.random() < 0.5:
                image = self.images[number]
            window = _window(found, self.size, random)
            found = found[window].long()
            image = None if image is None else image[window]
        else:
            found = smooth_noise(self.size, self.labels, self.scale, random).argmax(0)
        size = (2, *self.size)
        axes = [axis for axis in range(1, len(size)) if random.random() < 0.5]
        if found.ndim == len(size) and random.random() < 0.5:
            axes.append(0)
        labels = found.expand(size).flip(axes)
        return labels, None if image is None else image.expand(size).flip(axes)

    def _velocity(self, strength: float, random: np.random.Generator) -> Tensor:
        """(D, *S), its components of that standard deviation."""
        parts = [smooth_noise(self.size, len(self.size), scale, random) for scale in self.scales]
        return strength / len(parts) ** 0.5 * torch.stack(parts).sum(0)

    def _means(self, labels: int, random: np.random.Generator) -> Callable[[Tensor], Tensor]:
        """Labels to intensities: each has a mean, and deviates from it."""
        means = torch.from_numpy(random.random(labels, dtype=np.float32))
        deviations = torch.from_numpy(random.random(labels, dtype=np.float32) * _DEVIATION)
        if self.maps and random.random() < 0.5:
            means[0] = deviations[0] = 0

        def painted(shapes: Tensor) -> Tensor:
            noise = torch.from_numpy(random.standard_normal(self.size, dtype=np.float32))
            return means[shapes] + deviations[shapes] * noise

        return painted

    def _curve(self, random: np.random.Generator) -> Callable[[Tensor], Tensor]:
        """Intensities to others, as a curve through random points says."""
        values, deviation = random.random(_KNOTS), _DEVIATION * random.random()
        empty = random.random() < 0.5  # where the image is 0

        def painted(image: Tensor) -> Tensor:
            noise = random.standard_normal(self.size, dtype=np.float32)
            curve = np.interp(image.numpy(), np.linspace(0, 1, _KNOTS), values)
            found = torch.from_numpy((curve + deviation * noise).astype(np.float32))
            return found.masked_fill(image == 0, 0) if empty else found

        return painted

    def _scanned(self, image: Tensor, random: np.random.Generator) -> Tensor:
        """An image (*S) as a scanner gives it: blurred, coarse, in a bias field, normalised."""
        image = _blurred(image, _BLUR * random.random())
        if random.random() < _COARSE:
            image = _coarse(image, int(random.integers(image.ndim)), random.uniform(1.5, _LARGEST))
        bias = smooth_noise(self.size, 1, 2 * self.scale, random)[0]
        image = image.clamp(min=0) * torch.exp(_BIAS * random.random() * bias)
        low, high = torch.quantile(image.flatten()[:: 1 + image.numel() // 2**16], _ENDS)
        image = ((image - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
        return image ** float(np.exp(_GAMMA * random.standard_normal()))


_ENDS = torch.tensor([0.005, 0.995], dtype=torch.float32)


def _read(maps: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Label maps with their names: arrays as they are, those of files, of all files of a folder."""
    if isinstance(maps, str | Path):
        folder = Path(maps)
        if not folder.is_dir():
            raise ValueError(f"maps must be a folder of label maps, or several, got {str(maps)!r}")
        maps = folder_labels(folder) or folder_images(folder)
        if not maps:
            raise ValueError(f"maps: there is no label map in {folder}")
    if not isinstance(maps, Iterable):
        raise ValueError(
            f"maps must be label maps in a list, or a folder of them, got {type(maps).__name__}"
        )
    for number, given in enumerate(maps):
        if isinstance(given, str | Path):
            yield str(given), doubted(read_image(given, label=True)).data[0, 0].numpy()
        else:
            yield f"maps[{number}]", np.asarray(given)


def _checked(name: str, array: np.ndarray, size: tuple[int, ...]) -> Tensor:
    of_two = array.ndim == len(size) + 1 and len(array) == 2
    shape = array.shape[1:] if of_two else array.shape
    fits = len(shape) == len(size) and all(n >= s for n, s in zip(shape, size, strict=True))
    if not fits or array.dtype.kind not in "iu" or array.min() < 0:
        raise ValueError(
            f"{name} must be whole numbers >= 0 of at least size {list(size)}, got {array.dtype} "
            f"of {list(array.shape)}"
        )
    if not array.any():
        raise ValueError(f"{name} shows no label: it is 0 everywhere")
    _, ranks = np.unique(array, return_inverse=True)
    ranks = ranks.reshape(array.shape) + int(array.min() > 0)
    return torch.from_numpy(ranks.astype(np.uint8 if ranks.max() < 256 else np.int32))


def _window(found: Tensor, size: Sequence[int], random: np.random.Generator) -> tuple[Any, ...]:
    """One of that size of the last axes, anywhere; if it shows nothing, another one."""
    room = [n - length for n, length in zip(found.shape[-len(size) :], size, strict=True)]
    for _ in range(_TRIES if any(room) else 1):
        corner = [int(random.integers(more + 1)) if more else 0 for more in room]
        both = zip(corner, size, strict=True)
        window: tuple[Any, ...] = (..., *(slice(first, first + length) for first, length in both))
        if found[window].any():
            break
    return window


def _blurred(image: Tensor, sigma: float) -> Tensor:
    """By a Gaussian along every axis, the border repeated."""
    reach = int(np.ceil(3 * sigma))
    if not reach:
        return image
    steps = torch.arange(-reach, reach + 1, dtype=torch.float32)
    weights = torch.exp(-0.5 * (steps / sigma) ** 2)
    weights = (weights / weights.sum()).to(image.dtype)[None, None]
    for axis in range(image.ndim):
        lines = image.movedim(axis, -1)
        flat = F.pad(lines.reshape(-1, 1, lines.shape[-1]), (reach, reach), "replicate")
        image = F.conv1d(flat, weights).reshape(lines.shape).movedim(-1, axis)
    return image


def _coarse(image: Tensor, axis: int, times: float) -> Tensor:
    """As of voxels so many times as long along one axis."""
    size = image.shape[axis]
    lines = image.movedim(axis, -1).reshape(1, -1, size)
    few = F.interpolate(lines, max(2, round(size / times)), mode="linear", antialias=False)
    whole = F.interpolate(few, size, mode="linear", align_corners=False)
    return whole.reshape(image.movedim(axis, -1).shape).movedim(-1, axis)
