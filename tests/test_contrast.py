"""One contrast or two, and what is minimised then."""

import numpy as np
import pytest
import torch

import diffreg
from diffreg.data.prepare import prepare
from diffreg.registration.contrast import _within, choose, contrast

X = np.linspace(0, 1, 40)
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
        (lambda x: x**2.5, {"mi"}),  # .81
        (lambda x: 1 - x, {"mi"}),  # a line explains it all, but it falls
        (lambda x: (x - 0.5) ** 2, {"mi"}),
    ],
)
def test_the_similarity_follows_from_the_contrasts(other, names):
    choice = choose(pair(other))
    assert set(choice.objective.similarity) == names
    assert choice.metrics["across"] == (names == {"mi"})


def test_a_similarity_by_name_is_that():
    choice = choose(pair(lambda x: 1 - x), "pls")
    assert set(choice.objective.similarity) == {"pls"} and choice.metrics == {}


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
