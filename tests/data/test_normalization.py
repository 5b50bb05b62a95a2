"""Intensities to [0, 1]: by hand, in a mask, sample by sample, and where there is no contrast."""

import pytest
import torch

from diffreg.data.normalization import Normalization, normalize


def test_normalize_by_hand():
    image = torch.arange(101.0).reshape(1, 1, 101, 1)
    scaled = normalize(image, lower=10, upper=90).flatten()
    assert scaled[[0, 10, 50, 90, 100]].tolist() == [0, 0, 0.5, 1, 1]


def test_normalize_inside_a_mask():
    image = torch.tensor([1.0, 2.0, 3.0, 1000.0]).reshape(1, 1, 2, 2)
    mask = torch.tensor([1.0, 1.0, 1.0, 0.0]).reshape(1, 1, 2, 2)
    assert normalize(image, 0, 100, mask).flatten().tolist() == [0, 0.5, 1, 1]
    with pytest.raises(ValueError, match="mask selects no voxel of sample 0"):
        normalize(image, mask=torch.zeros_like(mask))


def test_normalize_treats_each_sample_by_itself():
    image = torch.rand(1, 1, 9, 9)
    batch = normalize(torch.cat([image, 50 * image + 7]))
    torch.testing.assert_close(batch[0], batch[1])


def test_normalize_a_constant_and_an_almost_constant_image():
    assert normalize(torch.full((1, 1, 4, 4), 7.0)).abs().max() == 0
    spot = torch.zeros(1, 1, 40, 40)
    spot[0, 0, 3, 3] = 5
    assert normalize(spot).max() == 1


def test_normalize_numbers_that_float32_does_not_tell_apart():
    image = 1e9 + torch.tensor([0.0, 1.0, 2.0, 4.0], dtype=torch.float64).reshape(1, 1, 2, 2)
    assert normalize(image, 0, 100).flatten().tolist() == [0, 0.25, 0.5, 1]


@pytest.mark.parametrize("lower, upper", [(50, 50), (-1, 99), (1, 101), (float("nan"), 99)])
def test_normalization_refuses_what_are_no_percentiles(lower, upper):
    with pytest.raises(ValueError, match="must be percentiles"):
        Normalization(lower, upper)
