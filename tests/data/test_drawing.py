"""Draws made together on a device: the bits of those made pair by pair."""

import numpy as np
import pytest
import torch

from diffreg.data.augmentation import Augmentation
from diffreg.data.drawing import Draws, Undrawn, drawn

CASES = [
    {},
    {"flip_axes": (0, 1)},
    {"crop": (9, 8)},
    {"flip_axes": (1,), "crop": (9, 8)},
    {"amplitude": 1.5, "sigma": 4.0},
    {"amplitude": 1.5, "sigma": 4.0, "flip_axes": (0, 1), "crop": (9, 8)},
]


@pytest.mark.parametrize("settings", CASES, ids=str)
@pytest.mark.parametrize("size", [(17, 12), (17, 12, 9)])
def test_draws_together_have_the_bits_of_each(settings, size):
    if "crop" in settings and len(size) == 3:
        settings = settings | {"crop": (9, 8, 7)}
    augmentation = Augmentation(**settings)
    count = 6
    generator = torch.Generator().manual_seed(0)
    moving, fixed = (torch.rand(count, 1, *size, generator=generator) for _ in range(2))

    def randoms():
        return [np.random.default_rng([0, k]) for k in range(count)]

    changes = augmentation.draw_all(size, randoms())
    each = [change(moving[k : k + 1], fixed[k : k + 1]) for k, change in enumerate(changes)]
    numbers = augmentation.random(size, randoms())
    draws = Draws.of(numbers, augmentation, size)
    batch = drawn(Undrawn(torch.cat([moving, fixed], 1), None, draws, augmentation))
    assert torch.equal(batch.moving, torch.cat([pair[0] for pair in each]))
    assert torch.equal(batch.fixed, torch.cat([pair[1] for pair in each]))
    if settings.get("flip_axes"):
        assert 0 < numbers.flips.sum() < numbers.flips.numel()
