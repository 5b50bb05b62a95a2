"""One contrast or two, and what is minimised then."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

import diffreg
from diffreg.data.prepare import prepare
from diffreg.demo.raw import FIXED, MOVING
from diffreg.losses import PRESETS
from diffreg.ops import correlation
from diffreg.registration.contrast import _within, choose, contrast, edges_in_common

X = np.linspace(0, 1, 40)
ACROSS = {"mi", "pls", "lncc"}
HEAD = np.exp(-((X[:, None] - 0.5) ** 2 + (X - 0.45) ** 2) / 0.05) * (1 + 0.2 * np.sin(40 * X))


def pair(other):
    noise = np.random.default_rng(0).normal(size=HEAD.shape) * 0.01
    return prepare(diffreg.image(HEAD + noise), diffreg.image(other(HEAD)))


@pytest.mark.parametrize(
    ("other", "names"),
    [
        (lambda x: 3 * x + 7, {"ncc", "lncc"}),
        (lambda x: x**1.2, {"ncc", "lncc"}),
        (
            lambda x: x**2,
            {"ncc", "lncc"},
        ),  # .89 of what is explained is a line's, as in tight masks
        (lambda x: x**2.5, ACROSS),  # .81
        (lambda x: 1 - x, ACROSS),  # a line explains it all, but it falls
        (lambda x: (x - 0.5) ** 2, ACROSS),
    ],
)
def test_the_similarity_follows_from_the_contrasts(other, names):
    choice = choose(pair(other))
    assert set(choice.objective.similarity) == names
    assert choice.metrics["across"] == (names == ACROSS)


def test_a_similarity_by_name_is_that():
    choice = choose(pair(lambda x: 1 - x), "pls")
    assert set(choice.objective.similarity) == {"pls"} and choice.metrics == {}


def smooth(seed, *size):
    """Bumps some six voxels wide."""
    noise = np.random.default_rng(seed).normal(size=size)
    return diffreg.image(gaussian_filter(noise, 3))


@pytest.mark.parametrize("frame", [0, 4, 12])
@pytest.mark.parametrize("size", [(64, 64), (32, 40, 32)], ids=str)
def test_edges_that_are_not_the_others_do_not_count(size, frame):
    """Nor does the black frame that both images are in, as exported ultrasound is."""
    moving, fixed = (
        replace(image, data=torch.nn.functional.pad(image.data, [frame] * 2 * len(size)))
        for image in (smooth(1, *size), smooth(2, *size))
    )
    found = choose(prepare(moving, fixed))
    assert set(found.objective.similarity) == {"mi"}
    assert found.metrics["across"] and found.metrics["edges_in_common"] < 0.05


def test_across_contrasts_the_weights_are_of_the_kind_of_grid():
    def weights(*spacing):
        size = (32, 40, 32)[: len(spacing)]
        moving = smooth(1, *size).data[0, 0].numpy()
        images = (diffreg.image(x, spacing=spacing) for x in (moving, (moving - 0.5) ** 2))
        return choose(prepare(*images)).objective

    assert weights(1, 1).weights == PRESETS["multimodal_slice"].weights
    assert weights(1, 1, 8).weights == PRESETS["multimodal_slice"].weights
    volume = weights(2, 2, 2)
    assert volume.weights == PRESETS["multimodal_volume"].weights and volume.window == 5


def test_edges_in_common_by_hand():
    """Parallel everywhere, wherever the edges are, they tell nothing; at right angles neither."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    one, ramp, other = torch.ones(1, 1, 32, 32), x[None, None], y[None, None]
    assert edges_in_common(ramp, -2 * ramp, one) == edges_in_common(ramp, other, one) == 0
    noise = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert edges_in_common(noise, 1 - noise, one) == pytest.approx(1, abs=1e-5)
    left = one.clone()
    left[..., 16:] = 0
    half = torch.where(left > 0, noise, noise.flip(-2))
    left[..., 15] = 0  # whose difference reaches across
    whole, within = edges_in_common(half, noise, one), edges_in_common(half, noise, left)
    assert whole < 0.6 and within == pytest.approx(1, abs=1e-4)
    small = noise[..., :12, :15]
    assert edges_in_common(small, small, torch.ones_like(small)) is None  # is not looked at
    assert edges_in_common(one, one, one) is None


@pytest.mark.slow
@pytest.mark.parametrize("size", [(16, 16, 3), (4, 16, 16), (2, 3, 4)], ids=str)
def test_stacks_of_few_planes_in_two_contrasts_are_told_too(size):
    """Fewer than the window of the background is wide, which was torch's error."""
    image = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0))
    edges = edges_in_common(image.square(), 1 - image, torch.ones_like(image))
    assert edges is None if max(size) < 16 else edges > 0.9


def test_across_contrasts_edges_and_local_correlation_fit_better_than_information_alone():
    """Two people, one of them in a contrast in which grey matter is brightest, with noise."""
    moving, fixed = diffreg.read_image(MOVING), diffreg.read_image(FIXED)
    values = moving.data / moving.data.max()
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(0))
    other = 1 - (2 * values - 1).abs() + 0.03 * noise * (values > 0.02)
    images, left = (replace(moving, data=other), fixed), {}
    for similarity in ("auto", "mi"):
        result = diffreg.register(*images, affine="none", similarity=similarity, iterations=20)
        warped = torch.as_tensor(result.apply(moving).data).float().reshape(fixed.data.shape)
        left[similarity] = float(correlation(warped, fixed.data.float()))
    assert left["auto"] < 0.7 * left["mi"] < 0.05


def test_by_hand():
    """Two values a bin: the bins' means explain all but their own spread."""
    a = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(100)
    b = torch.tensor([1.0, 3.0, 5.0, 7.0]).repeat(100)
    shape = (1, 1, 20, 20)
    r, ratio = contrast(a.reshape(shape), b.reshape(shape), torch.ones(shape))
    assert r == pytest.approx(np.sqrt(4 / 5)) and ratio == pytest.approx(1, abs=1e-9)
    one = torch.ones(shape)
    assert contrast(one, one, one) == (0.0, 0.0)


def test_noise_explains_nothing():
    draw = torch.Generator().manual_seed(0)
    images = (torch.rand(1, 1, 16, 16, generator=draw) for _ in range(2))
    r, ratio = contrast(*images, torch.ones(1, 1, 16, 16))
    assert abs(r) < 0.2 and ratio < 0.1


@pytest.mark.parametrize(
    "spacing, preset, window",
    [
        ((2.0, 2.0), "slice", None),
        ((2.0, 2.0, 2.0), "volume", 5),
        ((1.0, 1.0, 1.2), "volume", 9),
        ((0.3, 0.3, 0.3), "volume", 9),
        ((5.0, 5.0, 5.0), "volume", 5),
        ((1.4, 1.4, 2.5), "volume", 7),
        ((1.4, 1.4, 8.0), "slice", None),
    ],
    ids=str,
)
def test_thick_planes_count_as_slices_and_windows_are_of_10_mm(spacing, preset, window):
    assert _within(spacing) == (preset, window)
