"""Draws made together on a device: the bits of those made pair by pair."""

from typing import NamedTuple

import numpy as np
import pytest
import torch

from diffreg.data import drawing
from diffreg.data.augmentation import Augmentation
from diffreg.data.drawing import drawn
from diffreg.data.known import Known
from diffreg.data.pairs import PairDataset, find_pairs
from diffreg.data.samples import Batch, Sample
from diffreg.data.undrawn import Draws, Undrawn, Wanted
from diffreg.fields import compose, invert, warp_points
from diffreg.ops import warp
from diffreg.training.graphs import _key

CASES = [
    {},
    {"flip_axes": (0, 1)},
    {"crop": (9, 8)},
    {"flip_axes": (1,), "crop": (9, 8)},
    {"amplitude": 1.5, "sigma": 4.0},
    {"amplitude": 1.5, "sigma": 4.0, "flip_axes": (0, 1), "crop": (9, 8)},
]


@pytest.fixture(params=["slices", "gathered"], autouse=True)
def taken(request, monkeypatch):
    """As a CPU takes voxels from images, and as a GPU does."""
    if request.param == "gathered":
        monkeypatch.setattr(drawing, "_sliced", drawing._gathered)


class Change(NamedTuple):
    """What a draw does to one pair: mirror both images, bend each by its own warp, crop both."""

    axes: tuple
    warps: torch.Tensor | None  # (2, D, *S), of the moving and of the fixed image
    crop: tuple
    shape: tuple

    @classmethod
    def of(cls, augmentation, shape, random):
        flips, corners, strengths, noise = augmentation.random(shape, [random])
        axes = tuple(2 + axis for axis, flipped in enumerate(flips[0].tolist()) if flipped)
        cuts = zip(corners[0].tolist(), augmentation.crop, strict=False)
        crop = tuple(slice(first, first + size) for first, size in cuts)
        bends = augmentation.amplitude > 0
        return cls(axes, augmentation.bent(shape, strengths, noise) if bends else None, crop, shape)

    def __call__(self, moving, fixed):
        both = torch.cat([moving, fixed]).flip(self.axes)
        both = both if self.warps is None else warp(both, self.warps)
        return both[(..., *self.crop)].split(1)

    def mask(self, mask):
        mask = mask.flip(self.axes)
        mask = mask if self.warps is None else warp(mask, self.warps[1:], "nearest", "zeros")
        return mask[(..., *self.crop)]


def augmentation_of(settings, size):
    if "crop" in settings and len(size) == 3:
        settings = settings | {"crop": (9, 8, 7)}
    return Augmentation(**settings)


each_way = pytest.mark.parametrize("settings", CASES, ids=str)
each_size = pytest.mark.parametrize("size", [(17, 12), (17, 12, 9)])


@each_way
@each_size
def test_draws_together_have_the_bits_of_each(settings, size):
    augmentation = augmentation_of(settings, size)
    count = 6
    generator = torch.Generator().manual_seed(0)
    moving, fixed = (torch.rand(count, 1, *size, generator=generator) for _ in range(2))

    def randoms():
        return [np.random.default_rng([0, k]) for k in range(count)]

    changes = [Change.of(augmentation, size, random) for random in randoms()]
    each = [change(moving[k : k + 1], fixed[k : k + 1]) for k, change in enumerate(changes)]
    numbers = augmentation.random(size, randoms())
    draws = Draws.of(numbers, augmentation, size)
    batch = drawn(Undrawn(torch.cat([moving, fixed], 1), size, draws, augmentation))
    assert torch.equal(batch.moving, torch.cat([pair[0] for pair in each]))
    assert torch.equal(batch.fixed, torch.cat([pair[1] for pair in each]))
    if settings.get("flip_axes"):
        assert 0 < numbers.flips.sum() < numbers.flips.numel()


def known_of(generator, size, which):
    """Labels, points and a displacement; the second pair lacks each of them in turn."""

    def random(*shape):
        return torch.rand(shape, generator=generator)

    count = len(size)
    labels = [(4 * random(1, 1, *size)).to(torch.int16) for _ in range(2)]
    points = [random(1, 3 + which, count) * torch.tensor(size) for _ in range(2)]
    lacks = which % 4
    if lacks == 1:
        labels[0] = None
    elif lacks == 2:
        points = [None, None]
    field = None if lacks == 3 else random(1, count, *size)
    mask = (random(1, 1, *size) > 0.3).float() if which % 2 else None
    return mask, labels, Known(None, None, *points, field)


def changed(sample, change, most):
    """What is known of one pair, changed by itself: mask, labels of 1 and 2, points, field."""
    fixed = change(sample.moving, sample.fixed)[1]
    found = [torch.ones_like(fixed) if sample.mask is None else change.mask(sample.mask)]
    labels = sample.moving_label, sample.fixed_label
    if None in labels:
        found += [torch.zeros(1, 2, *fixed.shape[2:])] * 2
    else:
        found += change(*(torch.cat([(m == v).float() for v in (1, 2)], 1) for m in labels))
    count = fixed.ndim - 2
    for side, points in enumerate(sample.known[2:4]):
        padded = torch.full((1, most, count), torch.nan)
        if points is not None:
            points = points.clone()
            for axis in change.axes:
                points[..., axis - 2] = change.shape[axis - 2] - 1 - points[..., axis - 2]
            if change.warps is not None:
                points = warp_points(points, invert(change.warps[side : side + 1]))
            for axis, part in enumerate(change.crop):
                points[..., axis] -= part.start
            padded[:, : points.shape[1]] = points
        found.append(padded)
    field = sample.known.displacement
    if field is None:
        return [*found, torch.full((1, count, *fixed.shape[2:]), torch.nan)]
    field = field.flip(change.axes)
    for axis in change.axes:
        field[:, axis - 2] *= -1
    if change.warps is not None:
        of_moving, of_fixed = change.warps.split(1)
        field = compose(invert(of_moving), compose(field, of_fixed))
    return [*found, field[(..., *change.crop)]]


@each_way
@each_size
def test_what_is_known_has_the_bits_of_each(settings, size):
    """And is as large in a batch that has none of it, for a CUDA graph holds one form."""
    augmentation = augmentation_of(settings, size)
    count, most = 6, 9
    generator = torch.Generator().manual_seed(1)
    samples = []
    for which in range(count):
        mask, labels, known = known_of(generator, size, which)
        images = [torch.rand(1, 1, *size, generator=generator) for _ in range(2)]
        samples.append(Sample(*images, mask, *labels, (False,) * 3, known))

    def randoms():
        return [np.random.default_rng([1, k]) for k in range(count)]

    changes = [Change.of(augmentation, size, random) for random in randoms()]
    each = [changed(sample, change, most) for sample, change in zip(samples, changes, strict=True)]
    random = augmentation.random(size, randoms())
    draws = Draws.of(random, augmentation, size, known=True)
    wanted = Wanted(torch.tensor([1.0, 2.0], dtype=torch.float64), most, True)
    batch = drawn(Undrawn.of(samples, draws, augmentation, wanted, lambda tensors: tensors))
    for found, parts in zip((batch.mask, *batch.known), zip(*each, strict=True), strict=True):
        assert torch.equal(torch.nan_to_num(found, 99.0), torch.nan_to_num(torch.cat(parts), 99.0))
    if augmentation.crop and not augmentation.amplitude:
        there = Draws.of(random, augmentation, size, known=True, windows=True)
        lows = random.lows(size, augmentation.crop)
        cut = [s.window(low, augmentation.crop) for s, low in zip(samples, lows, strict=True)]
        of_windows = Undrawn.of(cut, there, augmentation, wanted, lambda t: t)
        assert of_windows.images.shape[2:] == augmentation.crop
        same = drawn(of_windows)
        for one, other in zip((*same[:3], *same.known), (*batch[:3], *batch.known), strict=True):
            assert torch.equal(torch.nan_to_num(one, 99.0), torch.nan_to_num(other, 99.0))
    bare = [sample._replace(moving_label=None, known=Known()) for sample in samples]
    empty = drawn(Undrawn.of(bare, draws, augmentation, wanted, lambda tensors: tensors))
    assert [part.shape for part in empty.known] == [part.shape for part in batch.known]
    parts = [
        drawn(Undrawn.of([sample], draws.part(slice(k, k + 1)), augmentation, wanted, list))
        for k, sample in enumerate(samples)
    ]
    for found, whole in zip(Batch.of(parts).known, batch.known, strict=True):
        assert torch.equal(torch.nan_to_num(found, 99.0), torch.nan_to_num(whole, 99.0))


def test_more_points_than_were_looked_at_are_drawn():
    image, points = torch.rand(1, 1, 8, 8), torch.rand(2, 1, 5, 2)
    sample = Sample(image, image, None, None, None, (False,) * 3, Known(None, None, *points))
    random = Augmentation().random((8, 8), [np.random.default_rng(0)])
    draws = Draws.of(random, Augmentation(), (8, 8), known=True)
    batch = drawn(Undrawn.of([sample], draws, Augmentation(), Wanted(None, 2), list))
    assert torch.equal(batch.known.fixed_points, points[1])


def test_label_maps_of_any_type_have_one_form():
    image, forms = torch.rand(1, 1, 8, 8), set()
    random = Augmentation().random((8, 8), [np.random.default_rng(0)])
    draws = Draws.of(random, Augmentation(), (8, 8))
    for dtype in (torch.uint8, torch.int16, torch.int64):
        label = torch.ones(1, 1, 8, 8, dtype=dtype)
        sample = Sample(image, image, None, label, label, (False,) * 3)
        wanted = Wanted(torch.ones(1).double())
        forms.add(_key(Undrawn.of([sample], draws, Augmentation(), wanted, list)))
    assert len(forms) == 1


def test_of_a_large_image_nothing_but_the_window_is_copied(tmp_path, monkeypatch):
    for name in "ab":
        np.savez(tmp_path / f"{name}.npz", np.random.default_rng(ord(name)).random((64, 64)))
    dataset = PairDataset(
        find_pairs([tmp_path]), None, Augmentation(crop=(9, 8), flip_axes=(0, 1)), cache=tmp_path
    )
    seen = []
    joined = torch.cat
    monkeypatch.setattr(
        torch, "cat", lambda parts, *axis: seen.extend(parts) or joined(parts, *axis)
    )
    dataset.batch(range(4))
    assert seen and max(part.numel() for part in seen) <= 4 * 2 * 9 * 8
