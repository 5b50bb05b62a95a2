"""Random warps: smooth, unfolded, with a known inverse, and the same for the same random state."""

import numpy as np
import pytest
import torch

from diffreg.data.augmentation import Augmentation
from diffreg.data.drawing import drawn
from diffreg.data.synthetic import random_velocity, random_warp
from diffreg.data.undrawn import Draws, Undrawn
from diffreg.fields import compose
from diffreg.metrics import folding
from diffreg.ops import warp

SHAPE = (96, 112)  # the demo's


def random(seed=0):
    return np.random.default_rng(seed)


def pair_of(augmentation, moving, fixed, seed):
    shape = moving.shape[2:]
    draws = Draws.of(augmentation.random(shape, [random(seed)]), augmentation, shape)
    return drawn(Undrawn(torch.cat([moving, fixed], 1), shape, draws, augmentation))[:2]


def test_the_amplitude_is_the_standard_deviation_everywhere():
    velocities = torch.cat([random_velocity((24, 20), 1.5, 4.0, random(k)) for k in range(400)])
    deviation = velocities.std(0)
    torch.testing.assert_close(deviation, torch.full_like(deviation, 1.5), rtol=0.2, atol=0)
    assert velocities.mean().abs() < 0.05


@pytest.mark.parametrize("seed", range(8))
def test_the_warps_of_the_demo_do_not_fold(seed):
    found = random_warp(SHAPE, 2.0, 10.0, random(seed))
    for displacement in found:
        assert folding(displacement)["min_determinant"] > 0.2


def test_the_inverse_undoes_the_warp():
    displacement, inverse = random_warp(SHAPE, 2.0, 10.0, random(3))
    assert displacement.abs().max() > 2
    inside = (slice(None), slice(None), slice(12, -12), slice(12, -12))  # what stays on the grid
    for pair in ((displacement, inverse), (inverse, displacement)):
        assert compose(*pair)[inside].abs().max() < 0.1


def test_the_truth_of_a_warped_image_is_known():
    x, y = np.meshgrid(*(np.linspace(0, 3, n) for n in SHAPE), indexing="ij")
    image = torch.from_numpy(np.sin(2 * x) * np.cos(3 * y)).float()[None, None]
    displacement, inverse = random_warp(SHAPE, 1.5, 10.0, random(1))
    back = warp(warp(image, displacement), inverse)
    torch.testing.assert_close(back[..., 9:-9, 9:-9], image[..., 9:-9, 9:-9], rtol=0, atol=0.02)


def test_the_same_state_gives_the_same_warp():
    one, same, other = (random_warp((16, 12), 1.0, 4.0, random(k)) for k in (5, 5, 6))
    assert torch.equal(one.displacement, same.displacement)
    assert not torch.equal(one.displacement, other.displacement)


def test_no_amplitude_is_no_warp():
    assert random_warp((5, 1), 0.0, 2.0, random()).displacement.abs().max() == 0


def test_a_pair_is_mirrored_together():
    image = torch.arange(12.0).reshape(1, 1, 3, 4)
    augmentation = Augmentation(flip_axes=(0, 1))
    seen = set()
    for seed in range(40):
        moving, fixed = pair_of(augmentation, image, 2 * image, seed)
        assert torch.equal(2 * moving, fixed)
        seen.add(tuple(moving.flatten().tolist()))
    flips = [image, image.flip(2), image.flip(3), image.flip(2, 3)]
    assert seen == {tuple(flip.flatten().tolist()) for flip in flips}


def test_the_images_of_a_pair_are_bent_each_in_its_own_way():
    image = torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    augmentation = Augmentation(amplitude=2.0, sigma=5.0)
    moving, fixed = pair_of(augmentation, image, image, 1)
    assert not torch.equal(moving, image)
    assert not torch.equal(moving, fixed)
    again = pair_of(augmentation, image, image, 1)
    assert torch.equal(moving, again[0]) and torch.equal(fixed, again[1])


def test_volumes_are_warped_as_images_are():
    velocities = torch.cat([random_velocity((6, 7, 5), 1.5, 4.0, random(k)) for k in range(400)])
    deviation = velocities.std(0)
    torch.testing.assert_close(deviation, torch.full_like(deviation, 1.5), rtol=0.2, atol=0)
    displacement, inverse = random_warp((20, 24, 18), 1.0, 6.0, random(3))
    assert displacement.shape == (1, 3, 20, 24, 18) and displacement.abs().max() > 1
    inside = (slice(None), slice(None), *[slice(5, -5)] * 3)  # what stays on the grid
    assert compose(displacement, inverse)[inside].abs().max() < 0.1


def test_volumes_are_mirrored_and_cut_together():
    x, y, z = np.indices((9, 8, 7))
    image = torch.from_numpy(100.0 * x + 10 * y + z)[None, None]
    augmentation = Augmentation(flip_axes=(0, 1, 2), crop=(5, 4, 3))
    seen = set()
    for seed in range(12):
        moving, fixed = pair_of(augmentation, image, image + 0.5, seed)
        assert torch.equal(moving + 0.5, fixed) and moving.shape == (1, 1, 5, 4, 3)
        steps = [moving.diff(dim=axis).flatten()[0].item() for axis in (2, 3, 4)]
        assert [abs(step) for step in steps] == [100, 10, 1]
        seen.add((tuple(steps), moving[0, 0, 0, 0, 0].item()))
    assert len(seen) > 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": (5, 4)}, r"crop must be 3 sizes, or none, got \[5, 4\]"),
        ({"crop": (5, 4, 9)}, r"the crop \[5, 4, 9\] is larger than \[9, 8, 7\]"),
    ],
)
def test_what_does_not_fit_volumes_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**settings).shape((9, 8, 7))
    with pytest.raises(ValueError, match="flip_axes must be below 2, the number of axes, got"):
        Augmentation(flip_axes=(2,)).shape((9, 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((3,), 1.0, 1.0), r"shape must be 2 or 3 sizes of at least 1, got \(3,\)"),
        (((3, 0), 1.0, 1.0), "shape must be 2 or 3 sizes"),
        (((3, 4), -1.0, 1.0), "amplitude must be a number >= 0 of voxels, got -1"),
        (((3, 4), 1.0, 0.0), "sigma must be a number > 0 of voxels, got 0"),
    ],
)
def test_numbers_are_refused_in_words(arguments, message):
    with pytest.raises(ValueError, match=message):
        random_velocity(*arguments, random())


@pytest.mark.parametrize(
    "settings", [{"amplitude": float("nan")}, {"sigma": -1.0}, {"flip_axes": (3,)}]
)
def test_settings_are_refused(settings):
    with pytest.raises(ValueError, match="must be"):
        Augmentation(**settings)
